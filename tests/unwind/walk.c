/* SPDX-License-Identifier: MIT */
/*
 * A coroutine, three calls deep, for unwinders to look at:
 *
 *     walk         where there is libunwind it looks at itself, and prints what
 *                  it finds
 *     walk busy    it takes a while there, for a profiler
 */
#include <coaio/coroutine.h>
#include <stdio.h>
#include <time.h>

#ifdef HAVE_LIBUNWIND
#define UNW_LOCAL_ONLY
#include <libunwind.h>
#endif

#define NOINLINE       __attribute__((noinline))
#define NO_TAIL_CALL() __asm__ volatile("" : : : "memory")

#ifdef HAVE_LIBUNWIND
static void walk(void)
{
    unw_context_t context;
    unw_cursor_t cursor;
    unw_word_t offset;
    char name[100];
    int ret = unw_getcontext(&context);

    if (ret == 0) {
        ret = unw_init_local(&cursor, &context);
    }
    for (int i = 0; ret >= 0 && i < 100; i++) {
        ret = unw_get_proc_name(&cursor, name, sizeof(name), &offset);
        printf("frame %s\n", ret == 0 ? name : "?");
        ret = unw_step(&cursor);
        if (ret == 0) {
            break;
        }
    }
    printf("end %d\n", ret);
}
#endif

NOINLINE void look_here(void);
NOINLINE void innermost(void);
NOINLINE void middle(void);
void outermost(void *opaque);

static bool busy;

/* For 0.2 s of CPU time. */
static void take_a_while(void)
{
    clock_t end = clock() + CLOCKS_PER_SEC / 5;

    while (clock() < end) {
        for (volatile int i = 0; i < 1000000; i++) {
        }
    }
}

void look_here(void)
{
    if (busy) {
        take_a_while();
    } else {
#ifdef HAVE_LIBUNWIND
        walk();
#endif
    }
    NO_TAIL_CALL();
}

void innermost(void)
{
    look_here();
    NO_TAIL_CALL();
}

void middle(void)
{
    innermost();
    NO_TAIL_CALL();
}

/* Before and after it was away. */
void coroutine_fn outermost(void *opaque)
{
    (void)opaque;
    middle();
    coroutine_yield();
    middle();
    NO_TAIL_CALL();
}

int main(int argc, char **argv)
{
    Coroutine *co = coroutine_create(outermost, NULL);

    (void)argv;
    busy = argc > 1;
    coroutine_enter(co);
    coroutine_enter(co);
    return 0;
}
