/* SPDX-License-Identifier: MIT */
/*
 * coroutine_create_full(): sizes, names, guards, and what it refuses.  That a
 * stack is as large as asked for is tried by using it, down to the last few
 * KiB, which are left to the entry and to tools that enlarge frames.
 */
#include "coroutine/coroutine_int.h"
#include "coroutine/stack.h"
#include "harness.h"

#include <coaio/coroutine.h>
#include <errno.h>
#include <string.h>

#define KIB     ((size_t)1024)
#define LARGEST (8192 * KIB)

static void do_nothing(void *opaque)
{
    (void)opaque;
}

static Coroutine *new_with_size(size_t stack_size, CoroutineEntry *entry,
                                void *opaque)
{
    CoroutineOptions options = {
        .size = sizeof(options),
        .stack_size = stack_size,
    };
    Coroutine *co = NULL;

    CHECK_EQ(coroutine_create_full(&co, entry, opaque, &options), 0);
    CHECK(co != NULL);
    return co;
}

/* --- sizes ----------------------------------------------------------------*/

typedef struct Digger {
    size_t want;    /* bytes of stack to use */
    uintptr_t from; /* where the entry found the stack */
    uintptr_t to;
    unsigned long sum;
} Digger;

/* Write to a stretch of stack, and go on below it. */
static __attribute__((noinline)) void dig(Digger *digger)
{
    volatile unsigned char frame[512];

    memset((void *)(uintptr_t)frame, 0x5a, sizeof(frame));
    digger->to = (uintptr_t)__builtin_frame_address(0);
    if (digger->from - digger->to + 2 * sizeof(frame) < digger->want) {
        dig(digger);
    }
    for (size_t i = 0; i < sizeof(frame); i++) {
        digger->sum += frame[i] == 0x5a;
    }
}

static void dig_from_entry(void *opaque)
{
    Digger *digger = opaque;

    digger->from = (uintptr_t)__builtin_frame_address(0);
    dig(digger);
}

static void use_stack(size_t stack_size)
{
    size_t spare = stack_size <= 64 * KIB ? stack_size / 4 : 16 * KIB;
    Digger digger = {.want = stack_size - spare};

    coroutine_enter(new_with_size(stack_size, dig_from_entry, &digger));
    CHECK(digger.from - digger.to + 2048 >= digger.want);
    CHECK(digger.sum > 0 && digger.sum % 512 == 0);
}

TEST(every_size_can_be_used)
{
    for (size_t size = 16 * KIB; size <= LARGEST; size *= 2) {
        use_stack(size);
        use_stack(size); /* as it came back from the pool */
    }
}

TEST(a_size_between_two_classes_is_rounded_up)
{
    for (size_t size = 16 * KIB; size < LARGEST; size *= 2) {
        use_stack(size + 1);
        use_stack(size + size / 2);
        use_stack(2 * size - 1);
    }
}

static void misuse_deep_down(void *opaque)
{
    volatile char used[11 * KIB];

    (void)opaque;
    used[0] = used[sizeof(used) - 1] = 0;
    coroutine_enter(NULL);
}

/* The line of it took 8 KiB, and so a coroutine that had used much of the
 * smallest stack died of an overflow instead. */
TEST_ABORTS(misuse_on_a_small_stack,
            "^coaio: coroutine_enter: the coroutine is NULL$")
{
    coroutine_enter(new_with_size(16 * KIB, misuse_deep_down, NULL));
}

TEST(the_classes_are_powers_of_two)
{
    int size_class = 0;

    CHECK_EQ(stack_class_for(0), STACK_CLASS_DEFAULT);
    CHECK_EQ(stack_class_for(64 * KIB), STACK_CLASS_DEFAULT);
    CHECK_EQ(stack_class_for(1), 0);
    for (size_t size = 16 * KIB; size <= LARGEST; size *= 2, size_class++) {
        CHECK_EQ(stack_class_for(size), size_class);
        CHECK_EQ(stack_class_for(size - 1), size_class);
        if (size < LARGEST) {
            CHECK_EQ(stack_class_for(size + 1), size_class + 1);
        }
    }
    CHECK_EQ(size_class, STACK_CLASS_COUNT);
}

TEST(no_size_asked_for_is_the_default)
{
    Coroutine *asked = new_with_size(0, do_nothing, NULL);
    Coroutine *plain = coroutine_create(do_nothing, NULL);
    Coroutine *null = NULL;

    CHECK_EQ(coroutine_create_full(&null, do_nothing, NULL, NULL), 0);
    CHECK_EQ(asked->size_class, STACK_CLASS_DEFAULT);
    CHECK_EQ(plain->size_class, STACK_CLASS_DEFAULT);
    CHECK_EQ(null->size_class, STACK_CLASS_DEFAULT);
    CHECK(coroutine_name(null) == NULL);
    coroutine_delete(asked);
    coroutine_delete(plain);
    coroutine_enter(null);
}

/* A slot that comes back must not be handed out as one of another class. */
TEST(classes_do_not_mix)
{
    for (int i = 0; i < 200; i++) {
        size_t size = 16 * KIB << (i % STACK_CLASS_COUNT);
        Coroutine *co = new_with_size(size, do_nothing, NULL);

        CHECK_EQ(co->size_class, stack_class_for(size));
        CHECK(co->stack_size >= size - 4 * KIB);
        if (i % 3) {
            coroutine_enter(co);
        } else {
            coroutine_delete(co);
        }
        co = coroutine_create(do_nothing, NULL);
        CHECK_EQ(co->size_class, STACK_CLASS_DEFAULT);
        coroutine_enter(co);
    }
}

/* --- what is refused ------------------------------------------------------*/

static int try_with(size_t size, size_t stack_size)
{
    Coroutine *const untouched = (Coroutine *)(void *)&try_with;
    CoroutineOptions options = {.size = size, .stack_size = stack_size};
    Coroutine *co = untouched;
    int ret = coroutine_create_full(&co, do_nothing, NULL, &options);

    CHECK((co == untouched) == (ret < 0));
    if (ret == 0) {
        coroutine_delete(co);
    }
    return ret;
}

TEST(a_stack_that_is_too_large_is_refused)
{
    const size_t good = sizeof(CoroutineOptions);

    CHECK_EQ(try_with(good, LARGEST), 0);
    CHECK_EQ(try_with(good, LARGEST + 1), -EINVAL);
    CHECK_EQ(try_with(good, SIZE_MAX), -EINVAL);
    CHECK_EQ(try_with(good, SIZE_MAX / 2 + 1), -EINVAL);
}

TEST(options_of_a_size_that_is_not_known_are_refused)
{
    const size_t good = sizeof(CoroutineOptions);

    CHECK_EQ(try_with(good, 0), 0);
    CHECK_EQ(try_with(0, 0), -EINVAL);
    CHECK_EQ(try_with(good - 1, 0), -EINVAL);
    CHECK_EQ(try_with(good + 8, 0), -EINVAL);
    CHECK_EQ(try_with(SIZE_MAX, 0), -EINVAL);
}

/* --- names and guards -----------------------------------------------------*/

TEST(a_name_is_kept_as_it_was_given)
{
    static const char name[] = "reader of \"disk\" 7";
    CoroutineOptions options = {.size = sizeof(options), .name = name};
    Coroutine *co;

    CHECK_EQ(coroutine_create_full(&co, do_nothing, NULL, &options), 0);
    CHECK_EQ(coroutine_name(co), name);
    coroutine_enter(co);
}

static void park(void *opaque)
{
    (void)opaque;
    coroutine_yield();
}

TEST_ABORTS(a_name_is_what_reports_show,
            "^coaio: .*coroutine \"reader\" .*has begun")
{
    CoroutineOptions options = {.size = sizeof(options), .name = "reader"};
    Coroutine *co;

    CHECK_EQ(coroutine_create_full(&co, park, NULL, &options), 0);
    coroutine_enter(co);
    coroutine_delete(co);
}

TEST(a_preferred_guard_is_no_obstacle)
{
    CoroutineOptions options = {
        .size = sizeof(options),
        .guard = COROUTINE_GUARD_PREFERRED,
    };

    for (int i = 0; i < 100; i++) {
        Coroutine *co;

        CHECK_EQ(coroutine_create_full(&co, do_nothing, NULL, &options), 0);
        CHECK_EQ(co->size_class, STACK_CLASS_DEFAULT);
        coroutine_enter(co);
    }
}

TEST_MAIN()
