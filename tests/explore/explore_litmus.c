/* SPDX-License-Identifier: MIT */
/*
 * The explorer's memory, held against C11: small tests whose outcomes are
 * known.  Each outcome that C11 allows (but for load buffering, which a view
 * machine does not show) must be seen, and no other.
 *
 * An outcome is a number with a bit for each value that was read.
 */
#include "base/atomic.h"
#include "explore.h"

static uint32_t x, y;           /* atomic */
static uint32_t r0, r1, r2, r3; /* what was read */
static uint32_t data;

static void two_reads(void)
{
    explore_outcome(r0 | r1 << 1);
}

/* --- store buffering: both may read 0, unless both have a fence -----------*/

static void sb_left(void)
{
    explore_begin();
    store_relaxed(&x, 1u);
    r0 = load_relaxed(&y);
    explore_end();
}

static void sb_right(void)
{
    explore_begin();
    store_relaxed(&y, 1u);
    r1 = load_relaxed(&x);
    explore_end();
}

static void sb_left_fence(void)
{
    explore_begin();
    store_relaxed(&x, 1u);
    fence_seq_cst();
    r0 = load_relaxed(&y);
    explore_end();
}

static void sb_right_fence(void)
{
    explore_begin();
    store_relaxed(&y, 1u);
    fence_seq_cst();
    r1 = load_relaxed(&x);
    explore_end();
}

static void sb_left_release_acquire(void)
{
    explore_begin();
    store_release(&x, 1u);
    r0 = load_acquire(&y);
    explore_end();
}

static void sb_right_release_acquire(void)
{
    explore_begin();
    store_release(&y, 1u);
    r1 = load_acquire(&x);
    explore_end();
}

EXPLORE(store_buffering, .threads = {sb_left, sb_right}, .finish = two_reads,
        .stale = -1,
        .allowed = OUTCOME(0) | OUTCOME(1) | OUTCOME(2) | OUTCOME(3))
EXPLORE(store_buffering_one_fence, .threads = {sb_left_fence, sb_right},
        .finish = two_reads, .stale = -1,
        .allowed = OUTCOME(0) | OUTCOME(1) | OUTCOME(2) | OUTCOME(3))
EXPLORE(store_buffering_fences, .threads = {sb_left_fence, sb_right_fence},
        .finish = two_reads, .stale = -1,
        .allowed = OUTCOME(1) | OUTCOME(2) | OUTCOME(3),
        .forbidden = OUTCOME(0))
EXPLORE(store_buffering_release_acquire,
        .threads = {sb_left_release_acquire, sb_right_release_acquire},
        .finish = two_reads, .stale = -1,
        .allowed = OUTCOME(0) | OUTCOME(1) | OUTCOME(2) | OUTCOME(3))

/* --- message passing: flag 1 and data 0 is what must not be ---------------*/

static void mp_write(void)
{
    explore_begin();
    store_relaxed(&x, 1u);
    store_relaxed(&y, 1u);
    explore_end();
}

static void mp_write_release(void)
{
    explore_begin();
    store_relaxed(&x, 1u);
    store_release(&y, 1u);
    explore_end();
}

static void mp_write_fence(void)
{
    explore_begin();
    store_relaxed(&x, 1u);
    fence_seq_cst();
    store_relaxed(&y, 1u);
    explore_end();
}

static void mp_read(void)
{
    explore_begin();
    r0 = load_relaxed(&y);
    r1 = load_relaxed(&x);
    explore_end();
}

static void mp_read_acquire(void)
{
    explore_begin();
    r0 = load_acquire(&y);
    r1 = load_relaxed(&x);
    explore_end();
}

static void mp_read_fence(void)
{
    explore_begin();
    r0 = load_relaxed(&y);
    fence_seq_cst();
    r1 = load_relaxed(&x);
    explore_end();
}

#define MP_ALL  (OUTCOME(0) | OUTCOME(1) | OUTCOME(2) | OUTCOME(3))
#define MP_GOOD (OUTCOME(0) | OUTCOME(2) | OUTCOME(3))

EXPLORE(message_passing, .threads = {mp_write, mp_read}, .finish = two_reads,
        .stale = -1, .allowed = MP_ALL)
EXPLORE(message_passing_release, .threads = {mp_write_release, mp_read},
        .finish = two_reads, .stale = -1, .allowed = MP_ALL)
EXPLORE(message_passing_acquire, .threads = {mp_write, mp_read_acquire},
        .finish = two_reads, .stale = -1, .allowed = MP_ALL)
EXPLORE(message_passing_both, .threads = {mp_write_release, mp_read_acquire},
        .finish = two_reads, .stale = -1, .allowed = MP_GOOD,
        .forbidden = OUTCOME(1))
EXPLORE(message_passing_fences, .threads = {mp_write_fence, mp_read_fence},
        .finish = two_reads, .stale = -1, .allowed = MP_GOOD,
        .forbidden = OUTCOME(1))
EXPLORE(message_passing_release_fence,
        .threads = {mp_write_release, mp_read_fence}, .finish = two_reads,
        .stale = -1, .allowed = MP_GOOD, .forbidden = OUTCOME(1))
EXPLORE(message_passing_fence_acquire,
        .threads = {mp_write_fence, mp_read_acquire}, .finish = two_reads,
        .stale = -1, .allowed = MP_GOOD, .forbidden = OUTCOME(1))

/* --- IRIW: may two readers see two writes in different orders? ------------*/

static void write_x(void)
{
    explore_begin();
    store_release(&x, 1u);
    explore_end();
}

static void write_y(void)
{
    explore_begin();
    store_release(&y, 1u);
    explore_end();
}

static void read_x_y(void)
{
    explore_begin();
    r0 = load_acquire(&x);
    r1 = load_acquire(&y);
    explore_end();
}

static void read_y_x(void)
{
    explore_begin();
    r2 = load_acquire(&y);
    r3 = load_acquire(&x);
    explore_end();
}

static void read_x_y_fence(void)
{
    explore_begin();
    r0 = load_acquire(&x);
    fence_seq_cst();
    r1 = load_acquire(&y);
    explore_end();
}

static void read_y_x_fence(void)
{
    explore_begin();
    r2 = load_acquire(&y);
    fence_seq_cst();
    r3 = load_acquire(&x);
    explore_end();
}

static void four_reads(void)
{
    explore_outcome(r0 | r1 << 1 | r2 << 2 | r3 << 3);
}

#define IRIW_ORDERS OUTCOME(5) /* x before y here, y before x there */

EXPLORE(iriw, .threads = {write_x, write_y, read_x_y, read_y_x},
        .finish = four_reads, .stale = -1, .allowed = 0xffff)
EXPLORE(iriw_fences,
        .threads = {write_x, write_y, read_x_y_fence, read_y_x_fence},
        .finish = four_reads, .stale = -1, .allowed = 0xffff & ~IRIW_ORDERS,
        .forbidden = IRIW_ORDERS)

/* --- coherence: of one location, nobody goes back -------------------------*/

static void write_twice(void)
{
    explore_begin();
    store_relaxed(&x, 1u);
    store_relaxed(&x, 2u);
    explore_end();
}

static void read_twice(void)
{
    explore_begin();
    r0 = load_relaxed(&x);
    r1 = load_relaxed(&x);
    explore_end();
}

static void pairs(void)
{
    explore_outcome(r0 * 3 + r1);
}

EXPLORE(coherence, .threads = {write_twice, read_twice}, .finish = pairs,
        .stale = -1,
        .allowed = OUTCOME(0) | OUTCOME(1) | OUTCOME(2) | OUTCOME(4) |
                   OUTCOME(5) | OUTCOME(8),
        .forbidden = OUTCOME(3) | OUTCOME(6) | OUTCOME(7))

/* --- release sequences: read-modify-writes carry them on, stores do not ---*/

static void release_data(void)
{
    explore_begin();
    store_relaxed(&x, 1u);
    store_release(&y, 1u);
    explore_end();
}

static void add_relaxed(void)
{
    explore_begin();
    fetch_add_relaxed(&y, 2u);
    explore_end();
}

static void store_over(void)
{
    explore_begin();
    store_relaxed(&y, 3u);
    explore_end();
}

static void acquire_data(void)
{
    explore_begin();
    r0 = load_acquire(&y);
    r1 = load_relaxed(&x);
    explore_end();
}

static void sequence(void)
{
    explore_outcome(r0 * 2 + r1);
}

/* y is 3: 1 came first, and what was released with it is seen. */
EXPLORE(release_sequence, .threads = {release_data, add_relaxed, acquire_data},
        .finish = sequence, .stale = -1,
        .allowed = OUTCOME(0) | OUTCOME(1) | OUTCOME(3) | OUTCOME(4) |
                   OUTCOME(5) | OUTCOME(7),
        .forbidden = OUTCOME(2) | OUTCOME(6))
EXPLORE(release_sequence_broken,
        .threads = {release_data, store_over, acquire_data}, .finish = sequence,
        .stale = -1,
        .allowed = OUTCOME(0) | OUTCOME(1) | OUTCOME(3) | OUTCOME(6) |
                   OUTCOME(7),
        .forbidden = OUTCOME(2))

/* --- read-modify-writes read the newest -----------------------------------*/

static void count_up(void)
{
    explore_begin();
    fetch_add_relaxed(&x, 1u);
    fetch_add_relaxed(&x, 1u);
    explore_end();
}

static void counted(void)
{
    explore_outcome(load_relaxed(&x));
}

static void count_up_by_cas(void)
{
    uint32_t seen;

    explore_begin();
    seen = load_relaxed(&x);
    while (!cas_relaxed(&x, &seen, seen + 1)) {
    }
    explore_end();
}

EXPLORE(counting, .threads = {count_up, count_up, count_up_by_cas},
        .finish = counted, .stale = -1, .allowed = OUTCOME(5),
        .forbidden = OUTCOME(4) | OUTCOME(3))

static void count_up_by_two_accesses(void)
{
    explore_begin();
    store_relaxed(&x, load_relaxed(&x) + 1);
    explore_end();
}

EXPLORE(counting_badly,
        .threads = {count_up_by_two_accesses, count_up_by_two_accesses},
        .finish = counted, .stale = -1, .allowed = OUTCOME(1) | OUTCOME(2))

/* --- plain data -----------------------------------------------------------*/

static void give_plain(void)
{
    explore_begin();
    data = 7;
    store_release(&y, 1u);
    explore_end();
}

static void take_plain(void)
{
    explore_begin();
    if (load_acquire(&y)) {
        CHECK_EQ(data, 7);
    }
    explore_end();
}

static void take_plain_relaxed(void)
{
    explore_begin();
    if (load_relaxed(&y)) {
        r0 = data;
    }
    explore_end();
}

EXPLORE(plain_data_that_is_handed_over, .threads = {give_plain, take_plain})
EXPLORE(plain_data_that_is_not, .threads = {give_plain, take_plain_relaxed},
        .fails = "data race")

EXPLORE_MAIN()
