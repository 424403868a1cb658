/* SPDX-License-Identifier: MIT */

/*
 * A plugin that has libcoaio.a in it, and (with HOST) a program whose thread
 * loads it, has it run a coroutine, and closes it before it ends.  At its end
 * the thread calls into the library, which must be there still.
 */

#ifndef HOST

#include <coaio/coaio.h>

void run_one(void);

static void set(void *opaque)
{
    *(int *)opaque = 1;
}

void run_one(void)
{
    int ran = 0;

    coroutine_enter(coroutine_create(set, &ran));
    if (!ran) {
        __builtin_trap();
    }
}

#else

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>

static void *use(void *path)
{
    void *plugin = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    void (*run_one)(void) = NULL;

    if (plugin) {
        *(void **)&run_one = dlsym(plugin, "run_one");
    }
    if (!run_one) {
        fprintf(stderr, "%s\n", dlerror());
        return path;
    }
    run_one();
    dlclose(plugin);
    return NULL;
}

int main(int argc, char **argv)
{
    void *failed = argv[0];
    pthread_t thread;

    if (argc != 2 || pthread_create(&thread, NULL, use, argv[1]) != 0) {
        return 1;
    }
    pthread_join(thread, &failed);
    return failed != NULL;
}

#endif
