/* SPDX-License-Identifier: MIT */
/*
 * Timers on their home thread: order, arming and deleting from callbacks,
 * nested passes, the clocks, random operations against a model, and the count
 * of locked operations.
 *
 * Expiries are either long past (small numbers) or far away, so that what is
 * due does not depend on how fast the test runs.
 */
#include "harness.h"

#include "base/atomic.h"
#include "loop/context.h"
#include "os/fault.h"

#include <coaio/coroutine.h>
#include <coaio/timer.h>
#include <stdlib.h>
#include <string.h>

#define NEVER INT64_MAX
#define MANY 64

static AioContext *ctx;

static void open_context(void)
{
    AioContextOptions options = {.size = sizeof(options), .name = "here"};

    CHECK_EQ(aio_context_new(&ctx, &options), 0);
    aio_context_attach(ctx);
}

static void close_context(void)
{
    aio_context_unref(ctx);
}

/* A timer that notes that it ran. */
typedef struct Noted {
    AioTimer timer;
    int id;
    int64_t again_ns;    /* arm anew at that time; 0: do not */
    struct Noted *kill;  /* to delete, or NULL */
    struct Noted *move;  /* to arm at NEVER, or NULL */
    bool poll;           /* make a nested pass */
    bool block;          /* which may block */
} Noted;

static int log_ids[4 * MANY];
static unsigned log_n;

static void note(void *opaque)
{
    Noted *noted = opaque;

    CHECK(!in_coroutine());
    CHECK(log_n < 4 * MANY);
    CHECK(!aio_timer_pending(&noted->timer));
    log_ids[log_n++] = noted->id;
    if (noted->again_ns) {
        int64_t again_ns = noted->again_ns;

        noted->again_ns = 0;
        aio_timer_mod_ns(&noted->timer, again_ns);
        CHECK(aio_timer_pending(&noted->timer));
    }
    if (noted->kill) {
        aio_timer_del(&noted->kill->timer);
    }
    if (noted->move) {
        aio_timer_mod_ns(&noted->move->timer, NEVER);
    }
    if (noted->poll) {
        aio_poll(ctx, noted->block);
    }
}

static void init_noted(Noted *noted, int id)
{
    memset(noted, 0, sizeof(*noted));
    noted->id = id;
    aio_timer_init(&noted->timer, ctx, AIO_CLOCK_MONOTONIC, note, noted);
}

static void arm_noted(Noted *noted, int id, int64_t expiry_ns)
{
    init_noted(noted, id);
    aio_timer_mod_ns(&noted->timer, expiry_ns);
}

static void check_log(unsigned n, const int *ids)
{
    CHECK_EQ(log_n, n);
    for (unsigned i = 0; i < n; i++) {
        CHECK_EQ(log_ids[i], ids[i]);
    }
    log_n = 0;
}

#define CHECK_LOG(...)                                                        \
    do {                                                                      \
        const int ids_[] = {__VA_ARGS__};                                     \
        check_log(sizeof(ids_) / sizeof(ids_[0]), ids_);                      \
    } while (0)

TEST(is_small)
{
    CHECK(sizeof(AioTimer) <= 96);
}

TEST(runs_in_the_order_of_expiry)
{
    Noted noted[5];

    open_context();
    arm_noted(&noted[0], 0, 30);
    arm_noted(&noted[1], 1, 10);
    arm_noted(&noted[2], 2, 50);
    arm_noted(&noted[3], 3, 20);
    arm_noted(&noted[4], 4, 40);
    CHECK(aio_poll(ctx, true));
    CHECK_LOG(1, 3, 0, 4, 2);
    CHECK(!aio_poll(ctx, false));
    close_context();
}

TEST(runs_equal_expiry_in_the_order_of_arming)
{
    Noted noted[MANY];

    open_context();
    for (int i = 0; i < MANY; i++) {
        arm_noted(&noted[i], i, 7);
    }
    /* Arming anew, even at the same time, goes to the end. */
    aio_timer_mod_ns(&noted[0].timer, 7);
    aio_poll(ctx, false);
    CHECK_EQ(log_n, MANY);
    for (int i = 0; i < MANY; i++) {
        CHECK_EQ(log_ids[i], (i + 1) % MANY);
    }
    close_context();
}

TEST(runs_in_the_next_pass_if_armed_in_the_past_by_its_callback)
{
    Noted a, b;

    open_context();
    arm_noted(&a, 1, 10);
    arm_noted(&b, 2, 20);
    a.again_ns = 5; /* before b, and yet not before it in this pass */
    CHECK(aio_poll(ctx, false));
    CHECK_LOG(1, 2);
    CHECK(aio_timer_pending(&a.timer));
    CHECK(aio_poll(ctx, true));
    CHECK_LOG(1);
    CHECK(!aio_poll(ctx, false));
    close_context();
}

TEST(can_be_deleted_or_moved_by_one_that_is_due_before)
{
    Noted a, b, c, d;

    open_context();
    arm_noted(&a, 1, 10);
    arm_noted(&b, 2, 20);
    arm_noted(&c, 3, 30);
    arm_noted(&d, 4, 40);
    a.kill = &b;
    a.move = &c;
    CHECK(aio_poll(ctx, false));
    CHECK_LOG(1, 4);
    CHECK(!aio_timer_pending(&b.timer));
    CHECK(aio_timer_pending(&c.timer));
    aio_timer_del(&c.timer);
    close_context();
}

TEST(can_delete_itself_and_what_it_has_just_armed)
{
    Noted a;

    open_context();
    arm_noted(&a, 1, 10);
    a.again_ns = 5;
    a.kill = &a;
    CHECK(aio_poll(ctx, false));
    CHECK(!aio_poll(ctx, false));
    CHECK_LOG(1);
    close_context();
}

TEST(deleting_an_idle_one_does_nothing)
{
    Noted a;

    open_context();
    init_noted(&a, 1);
    aio_timer_del(&a.timer);
    aio_timer_mod_ns(&a.timer, 10);
    aio_timer_del(&a.timer);
    aio_timer_del(&a.timer);
    CHECK(!aio_timer_pending(&a.timer));
    CHECK(!aio_poll(ctx, false));
    close_context();
}

TEST(a_nested_pass_runs_what_the_outer_one_has_left)
{
    Noted noted[4];

    open_context();
    for (int i = 0; i < 4; i++) {
        arm_noted(&noted[i], i, 10 + i);
    }
    noted[1].poll = true;
    noted[1].again_ns = 1; /* is due in the nested pass, after what is left */
    CHECK(aio_poll(ctx, false));
    CHECK_LOG(0, 1, 2, 3, 1);
    close_context();
}

TEST(a_nested_blocking_pass_does_not_wait_for_what_is_left)
{
    Noted a, b;

    open_context();
    arm_noted(&a, 1, 10);
    arm_noted(&b, 2, 20);
    a.poll = true;
    a.block = true;
    CHECK(aio_poll(ctx, true));
    CHECK_LOG(1, 2);
    close_context();
}

typedef struct Freed {
    AioTimer timer;
    unsigned *runs;
} Freed;

static void free_in_callback(void *opaque)
{
    Freed *freed = opaque;

    ++*freed->runs;
    free(freed);
}

TEST(may_be_freed_in_its_callback)
{
    unsigned runs = 0;

    open_context();
    for (int i = 0; i < 10; i++) {
        Freed *freed = malloc(sizeof(*freed));

        CHECK(freed);
        freed->runs = &runs;
        aio_timer_init(&freed->timer, ctx, AIO_CLOCK_MONOTONIC,
                       free_in_callback, freed);
        aio_timer_mod_ns(&freed->timer, 10 - i);
    }
    aio_poll(ctx, false);
    CHECK_EQ(runs, 10);
    close_context();
}

TEST(takes_any_time_for_an_expiry)
{
    Noted noted[4];
    int64_t now_ns;

    open_context();
    arm_noted(&noted[0], 0, INT64_MAX);
    arm_noted(&noted[1], 1, 0);
    arm_noted(&noted[2], 2, INT64_MIN);
    arm_noted(&noted[3], 3, -1);
    CHECK_EQ(timer_deadline_ns(ctx), 0);
    CHECK(aio_poll(ctx, true));
    CHECK_LOG(2, 3, 1);
    CHECK_EQ(timer_deadline_ns(ctx), INT64_MAX);
    aio_timer_del(&noted[0].timer);

    for (int i = 0; i < 4; i++) {
        aio_timer_init(&noted[i].timer, ctx, AIO_CLOCK_REALTIME, note,
                       &noted[i]);
    }
    aio_timer_mod_ns(&noted[1].timer, INT64_MIN);
    aio_timer_mod_ns(&noted[0].timer, INT64_MAX);
    aio_timer_mod_ns(&noted[2].timer, 0);
    CHECK(aio_poll(ctx, true));
    CHECK_LOG(1, 2);
    now_ns = aio_clock_ns(AIO_CLOCK_MONOTONIC);
    CHECK(timer_deadline_ns(ctx) >= now_ns);
    aio_timer_del(&noted[0].timer);
    close_context();
}

TEST(a_blocking_pass_lasts_until_the_expiry)
{
    Noted a;
    int64_t expiry_ns;

    open_context();
    expiry_ns = aio_clock_ns(AIO_CLOCK_MONOTONIC) + 3000000;
    arm_noted(&a, 1, expiry_ns);
    while (!aio_poll(ctx, true)) {
        /* an early end of the sleep is allowed, an early callback is not */
    }
    CHECK(aio_clock_ns(AIO_CLOCK_MONOTONIC) >= expiry_ns);
    CHECK_LOG(1);
    close_context();
}

TEST(the_realtime_clock_is_looked_at_every_second)
{
    Noted a;
    int64_t before_ns, deadline_ns;

    open_context();
    CHECK_EQ(timer_deadline_ns(ctx), INT64_MAX);
    init_noted(&a, 1);
    aio_timer_init(&a.timer, ctx, AIO_CLOCK_REALTIME, note, &a);
    aio_timer_mod_ns(&a.timer, NEVER);
    before_ns = aio_clock_ns(AIO_CLOCK_MONOTONIC);
    deadline_ns = timer_deadline_ns(ctx);
    CHECK(deadline_ns >= before_ns + 1000000000);
    CHECK(deadline_ns <= aio_clock_ns(AIO_CLOCK_MONOTONIC) + 1000000000);

    /* Nearer than a second: as far away as it is. */
    aio_timer_mod_ns(&a.timer, aio_clock_ns(AIO_CLOCK_REALTIME) + 500000000);
    CHECK(timer_deadline_ns(ctx) <=
          aio_clock_ns(AIO_CLOCK_MONOTONIC) + 500000000);

    /* Only while one is armed. */
    aio_timer_del(&a.timer);
    CHECK_EQ(timer_deadline_ns(ctx), INT64_MAX);
    close_context();
}

TEST(the_clocks_do_not_mix)
{
    Noted a, b;
    int64_t expiry_ns;

    open_context();
    expiry_ns = aio_clock_ns(AIO_CLOCK_REALTIME);
    init_noted(&a, 1);
    aio_timer_init(&a.timer, ctx, AIO_CLOCK_REALTIME, note, &a);
    aio_timer_mod_ns(&a.timer, expiry_ns); /* decades of uptime away */
    arm_noted(&b, 2, expiry_ns);
    CHECK(aio_poll(ctx, true));
    CHECK_LOG(1);
    CHECK(aio_timer_pending(&b.timer));
    aio_timer_del(&b.timer);
    close_context();
}

static void arm_in_coroutine(void *opaque)
{
    Noted *noted = opaque;

    aio_timer_mod_ns(&noted->timer, 10);
    aio_timer_del(&noted->timer);
    aio_timer_mod_ns(&noted->timer, 10);
}

TEST(can_be_armed_in_a_coroutine_and_runs_outside)
{
    Noted a;

    open_context();
    init_noted(&a, 1);
    coroutine_enter(coroutine_create(arm_in_coroutine, &a));
    CHECK(aio_poll(ctx, false));
    CHECK_LOG(1);
    close_context();
}

TEST(costs_no_locked_operation_at_home)
{
    Noted noted[MANY];
    uint64_t before;

    open_context();
    before = os_locked_operations();
    for (int i = 0; i < MANY; i++) {
        arm_noted(&noted[i], i, i % 7);
    }
    for (int i = 0; i < MANY; i += 2) {
        aio_timer_mod_ns(&noted[i].timer, 100 - i);
    }
    for (int i = 0; i < MANY; i += 3) {
        aio_timer_del(&noted[i].timer);
    }
    CHECK(timer_deadline_ns(ctx) < 100);
    CHECK(timer_dispatch(ctx));
    CHECK_EQ(os_locked_operations(), before);
    close_context();
}

TEST(costs_no_allocation_and_no_system_call)
{
    Noted noted[MANY];
    uint64_t allocations, syscalls;

    open_context();
    allocations = os_counter(OS_COUNT_ALLOCATIONS);
    syscalls = os_counter(OS_COUNT_SYSCALLS);
    for (int i = 0; i < MANY; i++) {
        arm_noted(&noted[i], i, i);
    }
    CHECK(aio_poll(ctx, true));
    CHECK_EQ(log_n, MANY);
    CHECK_EQ(os_counter(OS_COUNT_ALLOCATIONS), allocations);
    CHECK_EQ(os_counter(OS_COUNT_SYSCALLS), syscalls);
    close_context();
}

/* --- against a model ------------------------------------------------------*/

#define MODEL_TIMERS 200

typedef struct Model {
    Noted noted;
    bool armed;
    int64_t expiry_ns;
    uint64_t order;
} Model;

static Model model[MODEL_TIMERS];
static uint64_t model_order;
static uint64_t random_state;
static int model_ran[MODEL_TIMERS];
static unsigned model_n;

static uint32_t draw(uint32_t below)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 33) % below;
}

static void model_note(void *opaque)
{
    Noted *noted = opaque;

    model_ran[model_n++] = noted->id;
}

/* The armed one that is to run first, of those in the past; or NULL. */
static Model *model_first(void)
{
    Model *first = NULL;

    for (int i = 0; i < MODEL_TIMERS; i++) {
        Model *m = &model[i];

        if (m->armed && m->expiry_ns < 1000000 &&
            (!first || m->expiry_ns < first->expiry_ns ||
             (m->expiry_ns == first->expiry_ns &&
              m->order < first->order))) {
            first = m;
        }
    }
    return first;
}

static void model_pass(void)
{
    Model *first;
    unsigned i = 0;

    model_n = 0;
    aio_poll(ctx, false);
    while ((first = model_first())) {
        CHECK(i < model_n);
        CHECK_EQ(model_ran[i++], first->noted.id);
        first->armed = false;
    }
    CHECK_EQ(i, model_n);
}

static void model_step(void)
{
    Model *m = &model[draw(MODEL_TIMERS)];

    switch (draw(8)) {
    case 0:
        aio_timer_del(&m->noted.timer);
        m->armed = false;
        break;
    case 1:
        if (draw(20) == 0) {
            model_pass();
        }
        break;
    default:
        /* A tenth is far away; the rest is past, often equal. */
        m->expiry_ns = draw(10) == 0 ? NEVER - draw(50) : draw(50);
        m->order = model_order++;
        m->armed = true;
        aio_timer_mod_ns(&m->noted.timer, m->expiry_ns);
        break;
    }
    CHECK_EQ(aio_timer_pending(&m->noted.timer), m->armed);
}

TEST(ten_thousand_random_operations_match_a_model)
{
    open_context();
    random_state = harness_seed();
    for (int i = 0; i < MODEL_TIMERS; i++) {
        init_noted(&model[i].noted, i);
        model[i].noted.timer.callback_ = model_note;
    }
    for (unsigned long i = 0; i < harness_load(10000); i++) {
        model_step();
    }
    model_pass();
    for (int i = 0; i < MODEL_TIMERS; i++) {
        aio_timer_del(&model[i].noted.timer);
    }
    close_context();
}

/* --- at the end of the context --------------------------------------------*/

TEST_ABORTS(destroying_the_context_under_an_armed_one_aborts,
            "last reference to context \"here\" .* 2 .*timers")
{
    Noted a, b;

    open_context();
    arm_noted(&a, 1, NEVER);
    arm_noted(&b, 2, NEVER);
    close_context();
}

TEST_ABORTS(and_names_it, "timer 0x[0-9a-f]+ .*expiry 12345\\).* "
                          "context \"here\"")
{
    Noted a;

    open_context();
    arm_noted(&a, 1, 12345);
    close_context();
}

TEST_ABORTS(one_without_a_context,
            "^coaio: aio_timer_init: the context is NULL$")
{
    AioTimer timer;

    aio_timer_init(&timer, NULL, AIO_CLOCK_MONOTONIC, NULL, NULL);
}

TEST_MAIN()
