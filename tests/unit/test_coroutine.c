/* SPDX-License-Identifier: MIT */
/*
 * Coroutines: life cycle, nesting, order, what they say about themselves.
 * Everything runs on one thread and without a context; homes have a file of
 * their own.  Order is recorded as a trail of letters and compared as a whole.
 */
#include "coroutine/coroutine_int.h"
#include "harness.h"
#include "os/fault.h"

#include <coaio/coroutine.h>
#include <string.h>

static char trail[256];

static void mark(char c)
{
    size_t length = strlen(trail);

    CHECK(length + 1 < sizeof(trail));
    trail[length] = c;
}

/* --- life cycle -----------------------------------------------------------*/

static void set_flag(void *opaque)
{
    bool *done = opaque;

    CHECK(!*done);
    *done = true;
}

TEST(runs_only_when_entered)
{
    bool done = false;
    Coroutine *co = coroutine_create(set_flag, &done);

    CHECK(co != NULL);
    CHECK(!done);
    coroutine_enter(co);
    CHECK(done);
}

static void yield_five_times(void *opaque)
{
    int *steps = opaque;

    for (int i = 0; i < 5; i++) {
        ++*steps;
        coroutine_yield();
    }
    *steps = 100;
}

TEST(each_enter_runs_to_the_next_yield)
{
    int steps = 0;
    Coroutine *co = coroutine_create(yield_five_times, &steps);

    for (int i = 1; i <= 5; i++) {
        coroutine_enter(co);
        CHECK_EQ(steps, i);
    }
    coroutine_enter(co);
    CHECK_EQ(steps, 100);
}

static void count_yields(void *opaque)
{
    unsigned long *counts = opaque;

    while (counts[0] < counts[1]) {
        counts[0]++;
        coroutine_yield();
    }
}

TEST(a_hundred_thousand_yields)
{
    unsigned long rounds = harness_load(100000);
    unsigned long counts[2] = {0, rounds};
    unsigned long enters = 0;
    Coroutine *co = coroutine_create(count_yields, counts);

    while (counts[0] < rounds) {
        coroutine_enter(co);
        CHECK_EQ(counts[0], ++enters);
    }
    coroutine_enter(co);
    CHECK_EQ(counts[0], enters);
}

static void do_nothing(void *opaque)
{
    (void)opaque;
}

/* A finished one leaves nothing behind that grows. */
TEST(a_hundred_thousand_lives_allocate_nothing)
{
    unsigned long rounds = harness_load(100000);
    uint64_t before;

    coroutine_enter(coroutine_create(do_nothing, NULL));
    before = os_counter(OS_COUNT_ALLOCATIONS);
    for (unsigned long i = 0; i < rounds; i++) {
        coroutine_enter(coroutine_create(do_nothing, NULL));
    }
    CHECK_EQ(os_counter(OS_COUNT_ALLOCATIONS), before);
}

TEST(one_never_entered_is_given_back)
{
    unsigned long rounds = harness_load(10000);
    uint64_t before;

    coroutine_delete(coroutine_create(do_nothing, NULL));
    before = os_counter(OS_COUNT_ALLOCATIONS);
    for (unsigned long i = 0; i < rounds; i++) {
        coroutine_delete(coroutine_create(do_nothing, NULL));
    }
    CHECK_EQ(os_counter(OS_COUNT_ALLOCATIONS), before);
}

enum {
    MANY = 1000
};

static void yield_once(void *opaque)
{
    unsigned *seen = opaque;

    ++*seen;
    coroutine_yield();
    ++*seen;
}

TEST(a_thousand_at_once_keep_apart)
{
    static Coroutine *co[MANY];
    static unsigned seen[MANY];

    for (int i = 0; i < MANY; i++) {
        co[i] = coroutine_create(yield_once, &seen[i]);
        for (int j = 0; j < i; j += 97) {
            CHECK(co[j] != co[i]);
        }
    }
    for (int i = MANY - 1; i >= 0; i--) {
        coroutine_enter(co[i]);
    }
    for (int i = 0; i < MANY; i++) {
        CHECK_EQ(seen[i], 1);
        coroutine_enter(co[i]);
        CHECK_EQ(seen[i], 2);
    }
}

/* --- order ----------------------------------------------------------------*/

static void say_letters(void *opaque)
{
    const char *letters = opaque;

    while (*letters) {
        mark(*letters++);
        coroutine_yield();
    }
}

TEST(two_take_turns_with_their_enterer)
{
    Coroutine *lower = coroutine_create(say_letters, (void *)"abc");
    Coroutine *upper = coroutine_create(say_letters, (void *)"ABC");

    for (int i = 0; i < 3; i++) {
        mark('<');
        coroutine_enter(lower);
        mark('|');
        coroutine_enter(upper);
        mark('>');
    }
    CHECK_STR(trail, "<a|A><b|B><c|C>");
    coroutine_enter(lower);
    coroutine_enter(upper);
}

static void enter_inner(void *opaque)
{
    Coroutine *inner = opaque;

    mark('1');
    coroutine_enter(inner);
    mark('2');
    coroutine_yield();
    mark('3');
    coroutine_enter(inner);
    mark('4');
}

TEST(a_yield_goes_to_the_one_who_entered)
{
    Coroutine *inner = coroutine_create(say_letters, (void *)"abc");
    Coroutine *outer = coroutine_create(enter_inner, inner);

    coroutine_enter(outer);
    CHECK_STR(trail, "1a2");
    /* This time from outside, so it comes back to here. */
    coroutine_enter(inner);
    CHECK_STR(trail, "1a2b");
    coroutine_enter(outer);
    CHECK_STR(trail, "1a2b3c4");
    coroutine_enter(inner);
}

/* The end goes to the last enterer, too, not to the first. */
static void end_on_second_enter(void *opaque)
{
    (void)opaque;
    mark('a');
    coroutine_yield();
    mark('b');
}

static void enter_and_mark(void *opaque)
{
    mark('<');
    coroutine_enter(opaque);
    mark('>');
}

TEST(the_end_goes_to_the_one_who_entered_last)
{
    Coroutine *inner = coroutine_create(end_on_second_enter, NULL);

    coroutine_enter(coroutine_create(enter_and_mark, inner));
    CHECK_STR(trail, "<a>");
    coroutine_enter(coroutine_create(enter_and_mark, inner));
    CHECK_STR(trail, "<a><b>");
}

/* --- nesting --------------------------------------------------------------*/

enum {
    DEEP = 1000
};

typedef struct Nest {
    Coroutine *co[DEEP];
    int depth; /* of the one that runs */
    int most;
    bool burst; /* each yields on its way back */
} Nest;

static void check_chain(const Nest *nest)
{
    for (int i = 0; i < nest->depth; i++) {
        CHECK(coroutine_entered(nest->co[i]));
    }
    CHECK_EQ(coroutine_self(), nest->co[nest->depth - 1]);
}

static void descend(void *opaque)
{
    Nest *nest = opaque;
    int own = nest->depth++;

    nest->most = nest->depth > nest->most ? nest->depth : nest->most;
    if (nest->depth < DEEP) {
        Coroutine *next = coroutine_create(descend, nest);

        nest->co[nest->depth] = next;
        coroutine_enter(next);
        if (nest->burst) {
            CHECK(!coroutine_entered(next));
            coroutine_enter(next);
        }
    } else {
        check_chain(nest);
    }
    CHECK_EQ(coroutine_self(), nest->co[own]);
    if (nest->burst) {
        coroutine_yield();
    }
    nest->depth--;
}

TEST(nested_a_thousand_deep)
{
    static Nest nest;

    for (int i = 0; i < 3; i++) {
        nest.most = 0;
        nest.co[0] = coroutine_create(descend, &nest);
        coroutine_enter(nest.co[0]);
        CHECK_EQ(nest.depth, 0);
        CHECK_EQ(nest.most, DEEP);
    }
}

/* As above, but each level is left by a yield and entered once more. */
TEST(nested_a_thousand_deep_with_yields)
{
    static Nest nest = {.burst = true};

    nest.co[0] = coroutine_create(descend, &nest);
    coroutine_enter(nest.co[0]);
    CHECK_EQ(nest.most, DEEP);
    CHECK_EQ(nest.depth, 1);
    coroutine_enter(nest.co[0]);
    CHECK_EQ(nest.depth, 0);
}

/* --- who and where --------------------------------------------------------*/

static void check_self(void *opaque)
{
    Coroutine **co = opaque;

    CHECK(in_coroutine());
    CHECK_EQ(coroutine_self(), *co);
    coroutine_yield();
    CHECK(in_coroutine());
    CHECK_EQ(coroutine_self(), *co);
}

TEST(self_is_the_running_one_and_nobody_outside)
{
    Coroutine *co;

    CHECK(!in_coroutine());
    CHECK(coroutine_self() == NULL);
    co = coroutine_create(check_self, &co);
    coroutine_enter(co);
    CHECK(!in_coroutine());
    coroutine_enter(co);
    CHECK(coroutine_self() == NULL);
}

static void check_self_around_inner(void *opaque)
{
    Coroutine **co = opaque;

    coroutine_enter(co[1]);
    CHECK_EQ(coroutine_self(), co[0]);
    coroutine_enter(co[1]);
    CHECK_EQ(coroutine_self(), co[0]);
}

TEST(self_is_the_innermost)
{
    Coroutine *co[2];

    co[0] = coroutine_create(check_self_around_inner, co);
    co[1] = coroutine_create(check_self, &co[1]);
    coroutine_enter(co[0]);
}

static void check_entered_inside(void *opaque)
{
    Coroutine **co = opaque;

    CHECK(coroutine_entered(co[0]));
    CHECK(coroutine_entered(co[1]));
    coroutine_yield();
}

static void check_entered_outside(void *opaque)
{
    Coroutine **co = opaque;

    CHECK(coroutine_entered(co[0]));
    CHECK(!coroutine_entered(co[1]));
    coroutine_enter(co[1]);
    CHECK(!coroutine_entered(co[1]));
    coroutine_yield();
}

TEST(entered_is_true_from_enter_to_yield)
{
    Coroutine *co[2];

    co[0] = coroutine_create(check_entered_outside, co);
    co[1] = coroutine_create(check_entered_inside, co);
    CHECK(!coroutine_entered(co[0]));
    coroutine_enter(co[0]);
    CHECK(!coroutine_entered(co[0]));
    CHECK(!coroutine_entered(co[1]));
    coroutine_enter(co[1]);
    coroutine_enter(co[0]);
}

static void enter_self_if_inactive(void *opaque)
{
    (void)opaque;
    mark('a');
    coroutine_enter_if_inactive(coroutine_self());
    mark('b');
    coroutine_yield();
    mark('c');
}

TEST(enter_if_inactive_enters_what_is_not_entered)
{
    Coroutine *co = coroutine_create(enter_self_if_inactive, NULL);

    coroutine_enter_if_inactive(co);
    CHECK_STR(trail, "ab");
    coroutine_enter_if_inactive(co);
    CHECK_STR(trail, "abc");
}

/* The outer one of a chain is entered, too, though it does not run. */
static void poke(void *opaque)
{
    coroutine_enter_if_inactive(opaque);
    mark('p');
}

static void enter_poker(void *opaque)
{
    (void)opaque;
    mark('<');
    coroutine_enter(coroutine_create(poke, coroutine_self()));
    mark('>');
}

TEST(enter_if_inactive_leaves_the_enterer_alone)
{
    coroutine_enter(coroutine_create(enter_poker, NULL));
    CHECK_STR(trail, "<p>");
}

/* --- the pool -------------------------------------------------------------*/

static void end_with_much_set(void *opaque)
{
    (void)opaque;
    coroutine_yield();
}

static Coroutine *new_with_name(const char *name)
{
    CoroutineOptions options = {.size = sizeof(options), .name = name};
    Coroutine *co;

    CHECK_EQ(coroutine_create_full(&co, end_with_much_set, NULL, &options), 0);
    return co;
}

static void check_is_as_new(const Coroutine *co)
{
    CHECK(coroutine_name(co) == NULL);
    CHECK(coroutine_context(co) == NULL);
    CHECK(!coroutine_entered(co));
    CHECK(co->caller == NULL && co->scheduled == NULL && co->wait == NULL);
    CHECK(co->on_yield == NULL && co->target == NULL);
    CHECK(!co->counted && co->locks_held == 0);
    CHECK_EQ(co->state, COROUTINE_NEW);
}

/* The slot of a named one that has ended comes back without the name. */
TEST(a_pooled_one_inherits_nothing)
{
    bool again = false;

    for (int i = 0; i < 1000 && !again; i++) {
        Coroutine *old = new_with_name("old");
        Coroutine *new;

        coroutine_enter(old);
        coroutine_enter(old);
        new = coroutine_create(do_nothing, NULL);
        again = new == old;
        check_is_as_new(new);
        coroutine_enter(new);
    }
    if (!again) {
        SKIP("no slot was used twice: COAIO_DEBUG?");
    }
}

/* So does that of one that was deleted. */
TEST(one_made_after_a_delete_inherits_nothing)
{
    for (int i = 0; i < 1000; i++) {
        Coroutine *new;

        coroutine_delete(new_with_name("old"));
        new = coroutine_create(do_nothing, NULL);
        check_is_as_new(new);
        coroutine_enter(new);
    }
}

TEST_MAIN()
