/* SPDX-License-Identifier: MIT */
void f(int fd)
{
    n = read(fd, p, 1) + write(fd, p, 1);
    epoll_ctl(fd, 1, fd, 0);
    fd = eventfd(0, 0);
    p = mmap(0, 1, 0, 0, fd, 0);
    madvise(p, 1, 0);
    syscall(SYS_futex, p);
    poll(p, 1, 0);
    accept4(fd, 0, 0, 0);
    io_uring_submit(ring);
    n = rand();
    co_read(fd, p, 1);
    ops->read(fd, p, 1);
}
