/* SPDX-License-Identifier: MIT */
/*
 * CoRwlock on real threads: everything that one can do with it at random, with
 * coroutines that suspend themselves and change contexts; and locks that are
 * freed by their last user, by the thousand.
 */
#include "loops.h"

#include <stdlib.h>

#define LOOPS 5
#define CELLS 8

typedef struct Table {
    CoRwlock lock;
    unsigned long cells[CELLS]; /* plain; all equal outside writers */
    unsigned long writes;
    unsigned long expected; /* atomic */
    unsigned long rounds;
    unsigned writers_percent;
} Table;

typedef struct User {
    Table *table;
    Random random;
} User;

static void dawdle(Random *random)
{
    switch (random_below(random, 16)) {
    case 0:
        step_aside();
        break;
    case 1:
        co_reschedule_self(loop(random_below(random, LOOPS)));
        break;
    default:
        break;
    }
}

static void look(User *u)
{
    Table *t = u->table;
    unsigned long value = t->cells[0];

    dawdle(&u->random);
    for (unsigned i = 0; i < CELLS; i++) {
        CHECK_EQ(t->cells[i], value);
    }
}

static void change(User *u)
{
    Table *t = u->table;

    look(u);
    for (unsigned i = 0; i < CELLS; i++) {
        t->cells[i]++;
        if (i == CELLS / 2) {
            dawdle(&u->random);
        }
    }
    t->writes++;
    fetch_add_relaxed(&t->expected, 1ul);
}

static void write_once(User *u)
{
    Table *t = u->table;

    co_rwlock_wrlock(&t->lock);
    change(u);
    for (unsigned n = random_below(&u->random, 3); n > 0; n--) {
        co_rwlock_downgrade(&t->lock);
        look(u);
        co_rwlock_upgrade(&t->lock);
        change(u);
    }
    co_rwlock_unlock(&t->lock);
}

static void read_once(User *u)
{
    Table *t = u->table;

    co_rwlock_rdlock(&t->lock);
    look(u);
    if (random_below(&u->random, 100) < t->writers_percent) {
        co_rwlock_upgrade(&t->lock);
        change(u);
        co_rwlock_downgrade(&t->lock);
        look(u);
    }
    co_rwlock_unlock(&t->lock);
}

static void use(void *opaque)
{
    User *u = opaque;

    for (unsigned long i = 0; i < u->table->rounds; i++) {
        if (random_below(&u->random, 100) < u->table->writers_percent) {
            write_once(u);
        } else {
            read_once(u);
        }
    }
    job_done();
}

static void use_at_random(unsigned n, unsigned writers_percent,
                          unsigned long rounds)
{
    static Table table;
    User *users = calloc(n, sizeof(*users));
    uint64_t seed = harness_seed();

    CHECK(users != NULL);
    table = (Table){.writers_percent = writers_percent,
                    .rounds = harness_load(rounds)};
    loops_start(LOOPS);
    for (unsigned i = 0; i < n; i++) {
        users[i] = (User){.table = &table, .random = random_from(seed, i)};
        start(loop(i), use, &users[i]);
    }
    loops_join(n);
    loops_stop();
    CHECK_EQ(table.writes, table.expected);
    CHECK_EQ(table.cells[0], table.writes);
    CHECK_EQ(table.lock.word_, 0);
    CHECK(table.lock.waiters_.head_ == NULL);
    free(users);
}

TEST(mostly_readers)
{
    use_at_random(25, 5, 2000);
}

TEST(half_writers)
{
    use_at_random(25, 50, 500);
}

TEST(hundreds_of_coroutines)
{
    use_at_random(300, 10, 100);
}

/* --- freed by the last user ----------------------------------------------*/

typedef struct Object {
    CoRwlock lock;
    int users; /* under the write lock */
} Object;

typedef struct Line {
    Object **objects;
    unsigned long count;
} Line;

/* All users walk along the same line, so they meet at each lock. */
static void walk(void *opaque)
{
    Line *line = opaque;

    for (unsigned long i = 0; i < line->count; i++) {
        Object *object = line->objects[i];
        bool last;

        co_rwlock_rdlock(&object->lock);
        if (i % 3 == 0) {
            co_rwlock_upgrade(&object->lock);
            co_rwlock_downgrade(&object->lock);
        }
        co_rwlock_unlock(&object->lock);
        co_rwlock_wrlock(&object->lock);
        last = --object->users == 0;
        co_rwlock_unlock(&object->lock);
        if (last) {
            free(object);
        }
    }
    job_done();
}

TEST(five_users_free_locks_by_the_thousand)
{
    Line line = {.count = harness_load(20000)};

    line.objects = calloc(line.count, sizeof(*line.objects));
    CHECK(line.objects != NULL);
    for (unsigned long i = 0; i < line.count; i++) {
        line.objects[i] = calloc(1, sizeof(*line.objects[i]));
        CHECK(line.objects[i] != NULL);
        line.objects[i]->users = LOOPS;
    }
    loops_start(LOOPS);
    for (unsigned i = 0; i < LOOPS; i++) {
        start(loop(i), walk, &line);
    }
    loops_join(LOOPS);
    loops_stop();
    free(line.objects);
}

TEST_MAIN()
