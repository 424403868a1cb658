/* SPDX-License-Identifier: MIT */
/* An echo server whose connections are coroutines, and ten clients of it. */
#include <coaio/coaio.h>

#include <netinet/in.h>
#include <stdio.h>

static struct sockaddr_in address = { .sin_family = AF_INET };
static int answered;

static int coroutine_fn serve(void *opaque)
{
    int fd = (int)(intptr_t)opaque;
    char buffer[4096];
    ssize_t n, sent = 0;

    while (sent >= 0 && (n = co_recv(fd, buffer, sizeof(buffer), 0)) > 0) {
        for (ssize_t at = 0; at < n && sent >= 0; at += sent) {
            sent = co_send(fd, buffer + at, (size_t)(n - at), 0);
        }
    }
    return co_close(fd);
}

static int coroutine_fn accept_all(void *opaque)
{
    CoGroup connections = { 0 };
    int fd;

    while ((fd = co_accept(*(int *)opaque, NULL, NULL, 0)) >= 0) {
        co_group_run(&connections, NULL, serve, (void *)(intptr_t)fd);
    }
    return co_group_wait(&connections); /* the listener was closed */
}

static int coroutine_fn ask(void *opaque)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    char answer[6] = "";

    if (co_connect(fd, opaque, sizeof(address)) == 0) {
        co_send(fd, "hello", 5, 0);
        co_recv(fd, answer, 5, MSG_WAITALL);
    }
    answered += answer[4] == 'o';
    return co_close(fd);
}

static void coroutine_fn run(void *opaque)
{
    CoGroup server = { 0 }, clients = { 0 };
    socklen_t length = sizeof(address);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK); /* and any free port */
    bind(listener, (struct sockaddr *)&address, length);
    listen(listener, 16);
    getsockname(listener, (struct sockaddr *)&address, &length);
    co_group_run(&server, NULL, accept_all, &listener);
    for (int i = 0; i < 10; i++) {
        co_group_run(&clients, NULL, ask, &address);
    }
    co_group_wait(&clients);
    co_close(listener); /* ends co_accept() */
    co_group_wait(&server);
    *(bool *)opaque = true;
}

int main(void)
{
    AioContext *ctx = aio_context_main();
    bool done = false;

    coroutine_enter(coroutine_create(run, &done));
    while (!done) {
        aio_poll(ctx, true);
    }
    printf("%d of 10 were answered\n", answered);
    return answered != 10;
}
