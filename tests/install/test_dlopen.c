/* SPDX-License-Identifier: MIT */

/*
 * The shared library loaded late, by a program that was not linked to it and
 * from a thread that exists already: its thread-locals are initial-exec, so
 * they must fit into what the C library keeps in reserve.
 */

#include "harness.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct Api {
    void *(*create)(void (*entry)(void *), void *opaque);
    void (*enter)(void *co);
    void (*yield)(void);
    void *(*self)(void);
} Api;

static Api api;

/* The detour is what POSIX recommends for a pointer to a function. */
static void find(void *library, const char *name, void *pointer)
{
    *(void **)pointer = dlsym(library, name);
    if (!*(void **)pointer) {
        fprintf(stderr, "%s\n", dlerror());
    }
    CHECK(*(void **)pointer != NULL);
}

static void load(void)
{
    const char *path = getenv("COAIO_SHARED_LIBRARY");
    void *library;

    CHECK(path != NULL);
    library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        fprintf(stderr, "%s\n", dlerror());
    }
    CHECK(library != NULL);
    find(library, "coroutine_create", &api.create);
    find(library, "coroutine_enter", &api.enter);
    find(library, "coroutine_yield", &api.yield);
    find(library, "coroutine_self", &api.self);
}

static void count_twice(void *opaque)
{
    int *count = opaque;

    CHECK(api.self() != NULL);
    (*count)++;
    api.yield();
    (*count)++;
}

static void use(void)
{
    int count = 0;
    void *co = api.create(count_twice, &count);

    api.enter(co);
    CHECK_EQ(count, 1);
    CHECK(api.self() == NULL);
    api.enter(co);
    CHECK_EQ(count, 2);
}

TEST(a_program_loads_the_library_at_run_time)
{
    load();
    use();
}

static void *load_and_use(void *unused)
{
    load();
    use();
    return unused;
}

static void *only_use(void *unused)
{
    use();
    return unused;
}

static void in_thread(void *(*run)(void *))
{
    pthread_t thread;

    CHECK_EQ(pthread_create(&thread, NULL, run, NULL), 0);
    CHECK_EQ(pthread_join(thread, NULL), 0);
}

TEST(a_thread_loads_it_and_others_use_it)
{
    in_thread(load_and_use);
    in_thread(only_use);
    use();
}

TEST_MAIN()
