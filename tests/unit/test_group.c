/* SPDX-License-Identifier: MIT */
/*
 * CoGroup: all are waited for, and the first error is learned, once; on one
 * context and across threads; failure to start; misuse.
 */
#include "loops.h"
#include "loopthread.h"

#include "loop/wait.h"
#include "os/fault.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define MANY 100

typedef struct Member {
    int result;
    bool yields;
    bool done;
    Coroutine *co;
    AioContext *ctx;
} Member;

typedef struct Owner {
    CoGroup *group;
    int result;
    bool done;
} Owner;

static CoGroup group;
static Member members[MANY];

static int member(void *opaque)
{
    Member *m = opaque;

    m->co = coroutine_self();
    m->ctx = aio_context_current();
    if (m->yields) {
        coroutine_yield();
    }
    m->done = true;
    return m->result;
}

static void owner(void *opaque)
{
    Owner *o = opaque;

    o->result = co_group_wait(o->group);
    o->done = true;
}

static void run(int i, int result, bool yields)
{
    members[i] = (Member){.result = result, .yields = yields};
    CHECK_EQ(co_group_run(&group, NULL, member, &members[i]), 0);
}

static void finish(int i)
{
    coroutine_enter(members[i].co);
    CHECK(members[i].done);
}

TEST(an_empty_group_is_done)
{
    Owner o = {.group = &group, .result = 1};

    here_open();
    memset(&group, 0xa5, sizeof(group));
    co_group_init(&group);
    begin(owner, &o);
    CHECK(o.done);
    CHECK_EQ(o.result, 0);
    here_close();
}

TEST(waits_for_all)
{
    Owner o = {.group = &group};

    here_open();
    for (int i = 0; i < 5; i++) {
        run(i, i, true); /* what is not negative is no error */
    }
    begin(owner, &o);
    for (int i = 4; i >= 0; i--) {
        CHECK(!o.done);
        finish(i);
    }
    CHECK(o.done);
    CHECK_EQ(o.result, 0);
    here_close();
}

TEST(run_in_a_coroutine_starts_when_that_has_yielded)
{
    Owner o = {.group = &group};

    here_open();
    run(0, 0, false);
    CHECK(members[0].done); /* outside coroutines: at once */
    begin(owner, &o);
    CHECK(o.done);
    here_close();
}

static void run_and_wait(void *opaque)
{
    Owner *o = opaque;

    for (int i = 0; i < 10; i++) {
        run(i, i == 7 ? -EIO : 0, false);
        CHECK(!members[i].done);
    }
    o->result = co_group_wait(o->group);
    for (int i = 0; i < 10; i++) {
        CHECK(members[i].done);
    }
    o->done = true;
}

TEST(run_and_wait_in_one_coroutine)
{
    Owner o = {.group = &group};

    here_open();
    begin(run_and_wait, &o);
    CHECK(o.done);
    CHECK_EQ(o.result, -EIO);
    here_close();
}

TEST(the_first_error_counts_and_is_forgotten)
{
    Owner o = {.group = &group};

    here_open();
    for (int i = 0; i < 4; i++) {
        run(i, i ? -i : 0, true);
    }
    begin(owner, &o);
    finish(0);
    finish(2);
    finish(3);
    finish(1);
    CHECK_EQ(o.result, -2);
    begin(owner, &o);
    CHECK_EQ(o.result, 0);
    here_close();
}

TEST(an_error_before_the_wait_is_kept)
{
    Owner o = {.group = &group};

    here_open();
    run(0, -EPERM, false);
    run(1, -EIO, false);
    begin(owner, &o);
    CHECK_EQ(o.result, -EPERM);
    here_close();
}

TEST(several_may_wait_and_learn_the_same)
{
    Owner o[3];

    here_open();
    run(0, -EIO, true);
    for (int i = 0; i < 3; i++) {
        o[i] = (Owner){.group = &group};
        begin(owner, &o[i]);
    }
    finish(0);
    for (int i = 0; i < 3; i++) {
        CHECK(o[i].done);
        CHECK_EQ(o[i].result, -EIO);
    }
    here_close();
}

TEST(used_again)
{
    Owner o = {.group = &group};

    here_open();
    for (int i = 0; i < 10; i++) {
        o.done = false;
        run(0, i % 2 ? -EIO : 0, true);
        begin(owner, &o);
        finish(0);
        CHECK(o.done);
        CHECK_EQ(o.result, i % 2 ? -EIO : 0);
    }
    here_close();
}

static int spawner(void *opaque)
{
    int *left = opaque;

    if (*left > 0) {
        --*left;
        CHECK_EQ(co_group_run(&group, NULL, spawner, left), 0);
    }
    return *left ? 0 : -EDOM;
}

TEST(a_member_may_run_more)
{
    Owner o = {.group = &group};
    int left = 1000;

    here_open();
    CHECK_EQ(co_group_run(&group, NULL, spawner, &left), 0);
    begin(owner, &o);
    CHECK(o.done);
    CHECK_EQ(left, 0);
    CHECK_EQ(o.result, -EDOM);
    here_close();
}

TEST(a_cancelled_wait_leaves_the_group_as_it_is)
{
    Owner first = {.group = &group}, second = {.group = &group};
    Coroutine *co;

    here_open();
    run(0, -EIO, true);
    co = begin(owner, &first);
    CHECK(co_wait_cancel(co, -ECANCELED));
    CHECK(first.done);
    CHECK_EQ(first.result, -ECANCELED);
    begin(owner, &second);
    CHECK(!second.done);
    finish(0);
    CHECK_EQ(second.result, -EIO);
    here_close();
}

/* --- failure to start ----------------------------------------------------*/

TEST(without_memory_nothing_is_started)
{
    Owner o = {.group = &group};
    int ret = -ENOMEM;

    here_open();
    for (uint64_t n = 1; ret; n++) {
        os_fault_arm(n, ENOMEM, NULL);
        ret = co_group_run(&group, NULL, member, &members[0]);
        if (!os_fault_fired()) {
            CHECK_EQ(ret, 0);
            break;
        }
        if (ret) {
            CHECK_EQ(ret, -ENOMEM);
            CHECK(!members[0].done);
            CHECK_EQ(group.running_, 0);
        }
        CHECK(n < 1000);
    }
    begin(owner, &o);
    CHECK_EQ(o.result, 0);
    here_close();
}

/* --- across threads ------------------------------------------------------*/

static int hopping_member(void *opaque)
{
    Member *m = opaque;

    CHECK(aio_context_current() == m->ctx);
    aio_co_schedule(m->ctx, coroutine_self());
    coroutine_yield();
    m->done = true; /* plain: the wait makes it visible */
    return m->result;
}

static void run_everywhere(void *opaque)
{
    CoGroup *g = calloc(1, sizeof(*g));

    CHECK(g != NULL);
    for (unsigned i = 0; i < MANY; i++) {
        members[i] = (Member){.ctx = loop(i), .result = i == 50 ? -EIO : 0};
        CHECK_EQ(co_group_run(g, loop(i), hopping_member, &members[i]), 0);
    }
    CHECK_EQ(co_group_wait(g), -EIO);
    free(g); /* at once: the last member may be returning still */
    for (unsigned i = 0; i < MANY; i++) {
        CHECK(members[i].done);
    }
    (void)opaque;
    job_done();
}

TEST(members_on_five_threads_and_freed_at_once)
{
    loops_start(5);
    for (unsigned long i = harness_load(200); i > 0; i--) {
        start(loop((unsigned)i), run_everywhere, NULL);
        loops_join(1);
    }
    loops_stop();
}

static void wait_remotely(void *opaque)
{
    Owner *o = opaque;

    o->result = co_group_wait(o->group);
    job_done();
}

TEST(run_from_a_plain_thread)
{
    Owner o = {.group = &group};

    loops_start(2);
    for (unsigned i = 0; i < MANY; i++) {
        members[i] = (Member){.ctx = loop(i)};
        CHECK_EQ(co_group_run(&group, loop(i), hopping_member, &members[i]), 0);
    }
    start(loop(0), wait_remotely, &o);
    loops_join(1);
    CHECK_EQ(o.result, 0);
    for (unsigned i = 0; i < MANY; i++) {
        CHECK(members[i].done);
    }
    loops_stop();
}

/* --- misuse --------------------------------------------------------------*/

TEST_ABORTS(run_without_any_context,
            "co_group_run: CoGroup 0x[0-9a-f]+: this thread has no context")
{
    run(0, 0, false);
}

static void unref(void *ctx)
{
    aio_context_unref(ctx);
}

/* Nobody asks for the thread's context in between: it was freed once as the
 * member was made, and the member then sent there. */
TEST_ABORTS(run_where_another_thread_has_closed_the_context,
            "^coaio: co_group_run: CoGroup 0x[0-9a-f]+: this thread has no "
            "context, so one must be given$")
{
    here_open();
    run_in_thread(unref, here);
    run(0, 0, false);
}

static void unref_and_run(void *ctx)
{
    aio_context_unref(ctx);
    run(0, 0, false);
}

TEST_ABORTS(run_in_the_pass_that_has_closed_the_context,
            "^coaio: co_group_run: CoGroup 0x[0-9a-f]+: this thread has no "
            "context, so one must be given$")
{
    here_open();
    aio_bh_schedule_oneshot(here, unref_and_run, here);
    aio_poll(here, true);
}

TEST_ABORTS(wait_outside_coroutines,
            "co_group_wait: called outside a coroutine, on CoGroup 0x")
{
    here_open();
    co_group_wait(&group);
}

TEST_MAIN()
