/* SPDX-License-Identifier: MIT */
/*
 * The queue of timers by itself, with a clock that is a number: order, what it
 * says of the earliest, clocks that are set back, and random operations against
 * a model that looks at all timers.  There, timers that were removed or taken
 * are filled with rubbish and freed at once, so that whoever still follows them
 * falls over it.
 */
#include "harness.h"

#include "loop/timer_queue.h"

#include <stdlib.h>
#include <string.h>

#define MANY 300

static TimerQueue queue;
static AioTimer many[MANY];

/* Take what is due at now_ns, and check that it is just this, in this order. */
static void check_due(int64_t now_ns, unsigned n, AioTimer *const *expected)
{
    AioTimerLink due, *link;
    unsigned i = 0;

    timer_list_init(&due);
    timer_queue_take_due(&queue, now_ns, &due);
    for (link = due.next_; link != &due; link = link->next_) {
        CHECK(i < n);
        CHECK(timer_of(link) == expected[i++]);
    }
    CHECK_EQ(i, n);
}

#define CHECK_DUE(now_ns, ...)                                                \
    do {                                                                      \
        AioTimer *const due_[] = {__VA_ARGS__};                               \
        check_due(now_ns, sizeof(due_) / sizeof(*due_), due_);                \
    } while (0)

static void check_earliest(int64_t expected_ns)
{
    int64_t earliest_ns;

    CHECK(timer_queue_earliest_ns(&queue, &earliest_ns));
    CHECK_EQ(earliest_ns, expected_ns);
}

static void check_empty(void)
{
    int64_t earliest_ns;

    CHECK(!timer_queue_earliest_ns(&queue, &earliest_ns));
    CHECK(timer_queue_unused(&queue));
}

TEST(takes_what_is_due_and_leaves_the_rest)
{
    AioTimer a, b, c;

    timer_queue_init(&queue, 1000);
    timer_queue_insert(&queue, &a, 1000000);
    timer_queue_insert(&queue, &b, 1001);
    timer_queue_insert(&queue, &c, 1000);
    check_earliest(1000);
    CHECK_DUE(1000, &c);
    check_earliest(1001);
    CHECK_DUE(999999, &b);
    check_due(999999, 0, NULL);
    check_earliest(1000000);
    CHECK_DUE(1000000, &a);
    check_empty();
}

TEST(keeps_equal_ones_in_order_however_far_they_were)
{
    AioTimer a, b, c, near;

    timer_queue_init(&queue, 0);
    timer_queue_insert(&queue, &a, 5000000);
    timer_queue_insert(&queue, &near, 4000000);
    CHECK_DUE(4000000, &near); /* a has come nearer */
    timer_queue_insert(&queue, &b, 5000000);
    check_due(4999999, 0, NULL);
    timer_queue_insert(&queue, &c, 5000000);
    CHECK_DUE(5000000, &a, &b, &c);
    check_empty();
}

TEST(sorts_what_is_armed_in_the_past)
{
    AioTimer *expected[MANY];

    for (unsigned n = 1; n <= MANY; n = n < 20 ? n + 1 : n * 2) {
        timer_queue_init(&queue, 1000000);
        for (unsigned i = 0; i < n; i++) {
            /* Each expiry twice at least, the later ones first. */
            timer_queue_insert(&queue, &many[i], (n - i) / 2 % 50);
        }
        for (unsigned i = 0; i < n; i++) {
            expected[i] = &many[i];
        }
        for (unsigned i = 1; i < n; i++) {
            for (unsigned j = i; j > 0; j--) {
                AioTimer *later = expected[j];

                if (expected[j - 1]->expiry_ns_ <= later->expiry_ns_) {
                    break;
                }
                expected[j] = expected[j - 1];
                expected[j - 1] = later;
            }
        }
        check_due(1000000, n, expected);
        check_empty();
    }
}

TEST(a_clock_that_is_set_back_makes_none_early)
{
    AioTimer a, b, c, d;

    timer_queue_init(&queue, 1000000);
    timer_queue_insert(&queue, &a, 2000000);
    timer_queue_insert(&queue, &b, 900000);
    timer_queue_insert(&queue, &c, 2000000);
    check_due(800000, 0, NULL);
    check_earliest(900000);
    timer_queue_insert(&queue, &d, 850000);
    check_earliest(850000);
    CHECK_DUE(899999, &d);
    CHECK_DUE(3000000, &b, &a, &c);
    check_empty();
}

TEST(the_earliest_is_exact_among_few)
{
    timer_queue_init(&queue, 0);
    for (int i = 0; i < 8; i++) {
        timer_queue_insert(&queue, &many[i], 1000000 + i);
    }
    for (int i = 0; i < 8; i++) {
        check_earliest(1000000 + i);
        timer_list_remove(&many[i]);
    }
    check_empty();
}

/* Else a program would wake up for it for ever. */
TEST(one_that_was_removed_is_named_once_at_most)
{
    int64_t earliest_ns;
    unsigned early = 0;

    timer_queue_init(&queue, 0);
    for (int i = 0; i < MANY; i++) {
        timer_queue_insert(&queue, &many[i], 1000000000 + i);
    }
    timer_list_remove(&many[0]);
    while (timer_queue_earliest_ns(&queue, &earliest_ns) &&
           earliest_ns == 1000000000) {
        CHECK(++early < 2);
        check_due(earliest_ns, 0, NULL);
    }
    CHECK_DUE(1000000001, &many[1]);
}

TEST(takes_the_ends_of_all_times)
{
    AioTimer a, b, c;

    timer_queue_init(&queue, INT64_MIN);
    timer_queue_insert(&queue, &a, INT64_MAX);
    timer_queue_insert(&queue, &b, -1);
    timer_queue_insert(&queue, &c, INT64_MIN);
    CHECK_DUE(INT64_MIN, &c);
    CHECK_DUE(0, &b);
    check_due(INT64_MAX - 1, 0, NULL);
    CHECK_DUE(INT64_MAX, &a);
    timer_queue_insert(&queue, &a, INT64_MAX);
    timer_queue_insert(&queue, &b, INT64_MIN);
    CHECK_DUE(INT64_MAX, &b, &a);
    check_empty();
}

/* --- against a model ------------------------------------------------------*/

#define MODELS 200

typedef struct Model {
    AioTimer *timer; /* NULL: not in the queue */
    int64_t expiry_ns;
    uint64_t order;
} Model;

static Model models[MODELS];
static uint64_t next_order;
static int64_t now_ns;
static uint64_t random_state;

static uint64_t draw(uint64_t below)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (random_state >> 20) % below;
}

/* Some time that is near or far, as often the one as the other. */
static int64_t some_ns(void)
{
    return (int64_t)draw(UINT64_C(1) << draw(44));
}

static void forget(Model *m)
{
    memset(m->timer, 0xa5, sizeof(*m->timer));
    free(m->timer);
    m->timer = NULL;
}

static void model_insert(Model *m)
{
    if (m->timer) {
        timer_list_remove(m->timer);
        forget(m);
    }
    m->timer = malloc(sizeof(*m->timer));
    CHECK(m->timer);
    memset(m->timer, 0, sizeof(*m->timer));
    m->order = next_order++;
    switch (draw(4)) {
    case 0:
        m->expiry_ns = models[draw(MODELS)].expiry_ns; /* often an equal one */
        break;
    case 1:
        m->expiry_ns = now_ns - some_ns();
        break;
    default:
        m->expiry_ns = now_ns + some_ns();
        break;
    }
    timer_queue_insert(&queue, m->timer, m->expiry_ns);
}

static bool model_before(const Model *a, const Model *b)
{
    return a->expiry_ns < b->expiry_ns ||
           (a->expiry_ns == b->expiry_ns && a->order < b->order);
}

static Model *model_first(void)
{
    Model *first = NULL;

    for (int i = 0; i < MODELS; i++) {
        if (models[i].timer && (!first || model_before(&models[i], first))) {
            first = &models[i];
        }
    }
    return first;
}

static void model_take(void)
{
    AioTimerLink due;
    Model *first;

    timer_list_init(&due);
    timer_queue_take_due(&queue, now_ns, &due);
    while ((first = model_first()) && first->expiry_ns <= now_ns) {
        CHECK(!timer_list_empty(&due));
        CHECK(timer_of(due.next_) == first->timer);
        timer_list_remove(first->timer);
        forget(first);
    }
    CHECK(timer_list_empty(&due));
}

/* Go to the time that the queue names, at most: nothing is due before. */
static void model_earliest(void)
{
    Model *first = model_first();
    int64_t earliest_ns;

    CHECK_EQ(timer_queue_earliest_ns(&queue, &earliest_ns), first != NULL);
    if (first) {
        CHECK(earliest_ns <= first->expiry_ns);
        if (earliest_ns > now_ns && draw(2)) {
            now_ns = earliest_ns;
        }
    }
}

static void model_step(void)
{
    Model *m = &models[draw(MODELS)];

    switch (draw(16)) {
    case 0:
        model_earliest();
        model_take();
        break;
    case 1:
        now_ns += some_ns() / (1 + (int64_t)draw(1000));
        model_take();
        break;
    case 2:
        if (draw(20) == 0) {
            now_ns -= some_ns();
            model_take();
        }
        break;
    case 3:
    case 4:
    case 5:
    case 6:
        if (m->timer) {
            timer_list_remove(m->timer);
            forget(m);
        }
        break;
    default:
        model_insert(m);
        break;
    }
}

TEST(random_operations_match_a_model)
{
    random_state = harness_seed();
    now_ns = some_ns();
    timer_queue_init(&queue, now_ns);
    for (unsigned long i = 0; i < harness_load(50000); i++) {
        model_step();
    }
    now_ns = INT64_MAX;
    model_take();
    check_empty();
}

TEST_MAIN()
