/* SPDX-License-Identifier: MIT */
void f(void)
{
    clock_gettime(CLOCK_MONOTONIC, &t);
    usleep(1);
    t = time(0);
    t->time(0);
}
