/* SPDX-License-Identifier: MIT */
/*
 * Bottom halves on one thread: order, coalescing, cancelling, deleting, nested
 * passes, one-shots, and that nothing allocates which should not.  Other
 * threads: test_bh_threads; idle ones: test_bh_idle; signal handlers:
 * test_bh_signal and test_bh_step.
 */
#include "harness.h"
#include "os/fault.h"

#include <coaio/bh.h>
#include <coaio/context.h>
#include <coaio/coroutine.h>
#include <errno.h>
#include <string.h>

static AioContext *ctx;

static void begin(void)
{
    CHECK_EQ(aio_context_new(&ctx, NULL), 0);
}

static void end(void)
{
    CHECK(!aio_poll(ctx, false));
    aio_context_unref(ctx);
}

static char trail[256];

static void mark(char c)
{
    size_t length = strlen(trail);

    CHECK(length + 1 < sizeof(trail));
    trail[length] = c;
}

static void check_trail(const char *expected)
{
    CHECK_STR(trail, expected);
    memset(trail, 0, sizeof(trail));
}

/* A bottom half that marks its letter, and then does something if asked to. */
typedef struct Letter {
    AioBH *bh;
    struct Letter *other;
    void (*then)(struct Letter *letter);
    char c;
} Letter;

static void run_letter(void *opaque)
{
    Letter *letter = opaque;

    CHECK(!in_coroutine());
    CHECK_EQ(aio_context_current(), ctx);
    mark(letter->c);
    if (letter->then) {
        letter->then(letter);
    }
}

static void make_letters(Letter *letters, const char *names)
{
    for (int i = 0; names[i]; i++) {
        letters[i] = (Letter){.c = names[i]};
        letters[i].bh = aio_bh_new(ctx, run_letter, &letters[i]);
    }
}

static void drop_letters(Letter *letters, int n)
{
    for (int i = 0; i < n; i++) {
        aio_bh_delete(letters[i].bh);
    }
}

/* --- scheduling -----------------------------------------------------------*/

TEST(runs_once_for_each_time_it_is_scheduled)
{
    Letter a[1];

    begin();
    make_letters(a, "a");
    CHECK(!aio_poll(ctx, false));
    check_trail("");
    for (int i = 0; i < 3; i++) {
        aio_bh_schedule(a->bh);
        CHECK(aio_poll(ctx, true));
        check_trail("a");
        CHECK(!aio_poll(ctx, false));
        check_trail("");
    }
    drop_letters(a, 1);
    end();
}

TEST(first_in_first_out)
{
    Letter a[4];

    begin();
    make_letters(a, "abcd");
    aio_bh_schedule(a[2].bh);
    aio_bh_schedule(a[0].bh);
    aio_bh_schedule(a[3].bh);
    aio_bh_schedule(a[1].bh);
    CHECK(aio_poll(ctx, true));
    check_trail("cadb");
    drop_letters(a, 4);
    end();
}

TEST(scheduling_a_pending_one_changes_nothing)
{
    Letter a[3];

    begin();
    make_letters(a, "abc");
    aio_bh_schedule(a[0].bh);
    aio_bh_schedule(a[1].bh);
    for (int i = 0; i < 10; i++) {
        aio_bh_schedule(a[0].bh);
    }
    aio_bh_schedule(a[2].bh);
    CHECK(aio_poll(ctx, true));
    check_trail("abc");
    drop_letters(a, 3);
    end();
}

static void in_coroutine_schedule(void *opaque)
{
    aio_bh_schedule(opaque);
    mark('.');
    coroutine_yield();
}

TEST(a_coroutine_may_schedule_it)
{
    Letter a[1];
    Coroutine *co;

    begin();
    aio_context_attach(ctx);
    make_letters(a, "a");
    co = coroutine_create(in_coroutine_schedule, a->bh);
    coroutine_enter(co);
    CHECK(aio_poll(ctx, true));
    check_trail(".a");
    coroutine_enter(co);
    drop_letters(a, 1);
    end();
}

/* --- scheduled by bottom halves -------------------------------------------*/

static void schedule_other(Letter *letter)
{
    aio_bh_schedule(letter->other->bh);
}

TEST(what_a_bottom_half_schedules_runs_in_the_next_pass)
{
    Letter a[3];

    begin();
    make_letters(a, "abc");
    a[0].then = schedule_other;
    a[0].other = &a[2];
    aio_bh_schedule(a[0].bh);
    aio_bh_schedule(a[1].bh);
    CHECK(aio_poll(ctx, true));
    check_trail("ab");
    CHECK(aio_poll(ctx, true));
    check_trail("c");
    drop_letters(a, 3);
    end();
}

static int left;

static void schedule_self(Letter *letter)
{
    if (--left > 0) {
        aio_bh_schedule(letter->bh);
    }
}

TEST(one_that_schedules_itself_ten_times_takes_ten_passes)
{
    Letter a[1];

    begin();
    make_letters(a, "a");
    a->then = schedule_self;
    left = 10;
    aio_bh_schedule(a->bh);
    for (int i = 0; i < 10; i++) {
        CHECK(aio_poll(ctx, true));
        check_trail("a");
    }
    drop_letters(a, 1);
    end();
}

/* It is idle again when its callback begins, and this makes it pending anew
 * behind the one that was pending meanwhile. */
TEST(one_that_schedules_itself_queues_again)
{
    Letter a[2];

    begin();
    make_letters(a, "ab");
    a[0].then = schedule_self;
    a[1].then = schedule_other;
    a[1].other = &a[1];
    left = 2;
    aio_bh_schedule(a[0].bh);
    aio_bh_schedule(a[1].bh);
    CHECK(aio_poll(ctx, true));
    check_trail("ab");
    a[1].then = NULL;
    CHECK(aio_poll(ctx, true));
    check_trail("ab");
    drop_letters(a, 2);
    end();
}

/* --- cancelling -----------------------------------------------------------*/

TEST(a_cancelled_one_does_not_run)
{
    Letter a[2];

    begin();
    make_letters(a, "ab");
    aio_bh_schedule(a[0].bh);
    aio_bh_schedule(a[1].bh);
    aio_bh_cancel(a[0].bh);
    CHECK(aio_poll(ctx, true));
    check_trail("b");
    aio_bh_cancel(a[0].bh); /* is not pending */
    CHECK(!aio_poll(ctx, false));
    check_trail("");
    aio_bh_schedule(a[0].bh);
    CHECK(aio_poll(ctx, true));
    check_trail("a");
    drop_letters(a, 2);
    end();
}

TEST(cancelling_keeps_the_place)
{
    Letter a[3];

    begin();
    make_letters(a, "abc");
    aio_bh_schedule(a[0].bh);
    aio_bh_schedule(a[1].bh);
    aio_bh_cancel(a[0].bh);
    aio_bh_schedule(a[2].bh);
    aio_bh_schedule(a[0].bh);
    CHECK(aio_poll(ctx, true));
    check_trail("abc");
    drop_letters(a, 3);
    end();
}

/* A pass that finds only cancelled ones has made no progress. */
TEST(a_cancelled_one_is_no_progress)
{
    Letter a[1];

    begin();
    make_letters(a, "a");
    aio_bh_schedule(a->bh);
    aio_bh_cancel(a->bh);
    CHECK(!aio_poll(ctx, false));
    drop_letters(a, 1);
    end();
}

static void cancel_other(Letter *letter)
{
    aio_bh_cancel(letter->other->bh);
}

TEST(one_of_the_same_pass_can_still_be_cancelled)
{
    Letter a[3];

    begin();
    make_letters(a, "abc");
    a[0].then = cancel_other;
    a[0].other = &a[1];
    for (int i = 0; i < 3; i++) {
        aio_bh_schedule(a[i].bh);
    }
    CHECK(aio_poll(ctx, true));
    check_trail("ac");
    drop_letters(a, 3);
    end();
}

/* --- deleting -------------------------------------------------------------*/

static uint64_t live_blocks(void)
{
    return os_counter(OS_COUNT_ALLOCATIONS) - os_counter(OS_COUNT_FREES);
}

TEST(a_deleted_one_does_not_run)
{
    uint64_t before;
    Letter a[2];

    begin();
    before = live_blocks();
    make_letters(a, "ab");
    CHECK_EQ(live_blocks(), before + 2);
    aio_bh_schedule(a[0].bh);
    aio_bh_schedule(a[1].bh);
    aio_bh_delete(a[0].bh);
    CHECK(aio_poll(ctx, true));
    check_trail("b");
    CHECK_EQ(live_blocks(), before + 1);
    aio_bh_delete(a[1].bh); /* not pending: goes at once */
    CHECK_EQ(live_blocks(), before);
    aio_bh_delete(NULL);
    end();
}

static void delete_self(Letter *letter)
{
    aio_bh_delete(letter->bh);
}

TEST(one_may_delete_itself_in_its_callback)
{
    uint64_t before;
    Letter a[2];

    begin();
    before = live_blocks();
    make_letters(a, "ab");
    a[0].then = delete_self;
    aio_bh_schedule(a[0].bh);
    aio_bh_schedule(a[1].bh);
    CHECK(aio_poll(ctx, true));
    check_trail("ab");
    CHECK_EQ(live_blocks(), before + 1);
    aio_bh_delete(a[1].bh);
    end();
}

static void schedule_and_delete_self(Letter *letter)
{
    aio_bh_schedule(letter->bh);
    aio_bh_delete(letter->bh);
}

TEST(one_may_schedule_and_delete_itself_in_its_callback)
{
    uint64_t before;
    Letter a[1];

    begin();
    before = live_blocks();
    make_letters(a, "a");
    a->then = schedule_and_delete_self;
    aio_bh_schedule(a->bh);
    CHECK(aio_poll(ctx, true));
    check_trail("a");
    CHECK(!aio_poll(ctx, false));
    check_trail("");
    CHECK_EQ(live_blocks(), before);
    end();
}

static void delete_other(Letter *letter)
{
    aio_bh_delete(letter->other->bh);
}

/* One that is to run in this pass, and one that has run in it. */
TEST(a_bottom_half_may_delete_others_of_its_pass)
{
    uint64_t before;
    Letter a[4];

    begin();
    before = live_blocks();
    make_letters(a, "abcd");
    a[1].then = delete_other;
    a[1].other = &a[0];
    a[2].then = delete_other;
    a[2].other = &a[3];
    for (int i = 0; i < 4; i++) {
        aio_bh_schedule(a[i].bh);
    }
    CHECK(aio_poll(ctx, true));
    check_trail("abc");
    CHECK_EQ(live_blocks(), before + 2);
    drop_letters(&a[1], 2);
    CHECK_EQ(live_blocks(), before);
    end();
}

/* The context frees what was deleted while it was pending, and never ran. */
TEST(a_deleted_one_may_outlast_the_last_pass)
{
    uint64_t before;
    Letter a[2];

    before = live_blocks();
    begin();
    make_letters(a, "ab");
    aio_bh_schedule(a[0].bh);
    aio_bh_schedule_idle(a[1].bh);
    drop_letters(a, 2);
    aio_context_unref(ctx);
    CHECK_EQ(live_blocks(), before);
    check_trail("");
}

/* --- nested passes --------------------------------------------------------*/

static void poll_nested(Letter *letter)
{
    mark('(');
    if (letter->other) {
        aio_bh_schedule(letter->other->bh);
    }
    CHECK(aio_poll(ctx, true));
    mark(')');
}

TEST(a_nested_pass_first_runs_what_the_outer_one_has_left)
{
    Letter a[4];

    begin();
    make_letters(a, "abcd");
    a[0].then = poll_nested;
    a[0].other = &a[3];
    for (int i = 0; i < 3; i++) {
        aio_bh_schedule(a[i].bh);
    }
    CHECK(aio_poll(ctx, true));
    check_trail("a(bcd)");
    CHECK(!aio_poll(ctx, false));
    drop_letters(a, 4);
    end();
}

TEST(passes_nest_more_than_once)
{
    Letter a[5];

    begin();
    make_letters(a, "abcde");
    a[0].then = poll_nested;
    a[1].then = poll_nested;
    a[1].other = &a[4];
    a[2].then = poll_nested;
    for (int i = 0; i < 4; i++) {
        aio_bh_schedule(a[i].bh);
    }
    CHECK(aio_poll(ctx, true));
    check_trail("a(b(c(de)))");
    drop_letters(a, 5);
    end();
}

/* It is not pending while it runs, so a nested pass does not run it again,
 * unless it was scheduled again. */
static void schedule_self_and_poll(Letter *letter)
{
    if (--left > 0) {
        aio_bh_schedule(letter->bh);
        mark('(');
        CHECK(aio_poll(ctx, true));
        mark(')');
    }
    CHECK(!aio_poll(ctx, false));
}

TEST(one_may_run_nested_in_itself)
{
    Letter a[1];

    begin();
    make_letters(a, "a");
    a->then = schedule_self_and_poll;
    left = 3;
    aio_bh_schedule(a->bh);
    CHECK(aio_poll(ctx, true));
    check_trail("a(a(a))");
    drop_letters(a, 1);
    end();
}

static void delete_other_and_poll(Letter *letter)
{
    aio_bh_delete(letter->other->bh);
    CHECK(!aio_poll(ctx, false));
}

TEST(a_nested_pass_frees_what_the_outer_one_had_taken_over)
{
    uint64_t before;
    Letter a[2];

    begin();
    before = live_blocks();
    make_letters(a, "ab");
    a[0].then = delete_other_and_poll;
    a[0].other = &a[1];
    aio_bh_schedule(a[0].bh);
    aio_bh_schedule(a[1].bh);
    CHECK(aio_poll(ctx, true));
    check_trail("a");
    CHECK_EQ(live_blocks(), before + 1);
    drop_letters(a, 1);
    end();
}

/* --- one-shots ------------------------------------------------------------*/

static void mark_letter(void *opaque)
{
    CHECK_EQ(aio_context_current(), ctx);
    mark(*(const char *)opaque);
}

TEST(a_one_shot_runs_once_and_frees_itself)
{
    uint64_t before;

    begin();
    before = live_blocks();
    aio_bh_schedule_oneshot(ctx, mark_letter, (void *)"a");
    aio_bh_schedule_oneshot(ctx, mark_letter, (void *)"b");
    CHECK_EQ(live_blocks(), before + 2);
    CHECK(aio_poll(ctx, true));
    check_trail("ab");
    CHECK_EQ(live_blocks(), before);
    end();
}

TEST(one_shots_and_others_keep_one_order)
{
    AioBHStorage storage;
    Letter a[2];

    begin();
    make_letters(a, "ab");
    aio_bh_schedule(a[1].bh);
    aio_bh_schedule_oneshot(ctx, mark_letter, (void *)"1");
    aio_bh_schedule(a[0].bh);
    aio_bh_schedule_oneshot_embedded(ctx, &storage, mark_letter, (void *)"2");
    CHECK(aio_poll(ctx, true));
    check_trail("b1a2");
    drop_letters(a, 2);
    end();
}

typedef struct Embedded {
    AioBHStorage storage;
    int left;
} Embedded;

static void run_embedded(void *opaque)
{
    Embedded *embedded = opaque;

    mark('e');
    memset(&embedded->storage, 0xff, sizeof(embedded->storage));
    if (--embedded->left > 0) {
        aio_bh_schedule_oneshot_embedded(ctx, &embedded->storage, run_embedded,
                                         embedded);
    }
}

/* The storage is the callback's, which uses it again. */
TEST(an_embedded_one_allocates_nothing)
{
    Embedded embedded = {.left = 3};
    uint64_t before;

    begin();
    before = os_counter(OS_COUNT_ALLOCATIONS);
    aio_bh_schedule_oneshot_embedded(ctx, &embedded.storage, run_embedded,
                                     &embedded);
    for (int i = 0; i < 3; i++) {
        CHECK(aio_poll(ctx, true));
        check_trail("e");
    }
    CHECK_EQ(os_counter(OS_COUNT_ALLOCATIONS), before);
    end();
}

TEST(only_making_one_allocates)
{
    uint64_t before;
    Letter a[2];

    begin();
    make_letters(a, "ab");
    before = os_counter(OS_COUNT_ALLOCATIONS);
    aio_bh_schedule(a[0].bh);
    aio_bh_schedule_idle(a[1].bh);
    aio_bh_cancel(a[0].bh);
    aio_bh_schedule(a[0].bh);
    CHECK(aio_poll(ctx, true));
    aio_bh_schedule(a[0].bh);
    drop_letters(a, 2);
    aio_poll(ctx, false);
    CHECK_EQ(os_counter(OS_COUNT_ALLOCATIONS), before);
    end();
}

TEST(scheduling_keeps_errno)
{
    Letter a[1];

    begin();
    make_letters(a, "a");
    errno = 77;
    aio_bh_schedule(a->bh);
    CHECK_EQ(errno, 77);
    aio_bh_cancel(a->bh);
    CHECK_EQ(errno, 77);
    aio_bh_schedule_idle(a->bh);
    CHECK_EQ(errno, 77);
    aio_poll(ctx, false);
    drop_letters(a, 1);
    end();
}

/* --- the main context -----------------------------------------------------*/

static void check_main(void *opaque)
{
    (void)opaque;
    CHECK_EQ(aio_context_current(), aio_context_main());
    mark('m');
}

TEST(one_of_the_main_context)
{
    AioBH *bh;

    harness_allow_fds(4); /* the main context stays */
    bh = aio_bh_new_main(check_main, NULL);
    CHECK(aio_context_current() != NULL);
    aio_bh_schedule(bh);
    CHECK(aio_poll(aio_context_main(), true));
    check_trail("m");
    aio_bh_delete(bh);
}

TEST_MAIN()
