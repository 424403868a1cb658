# SPDX-License-Identifier: MIT
"""The goals that bench/run judges its results by.

A goal is a ratio of two medians of one run, or one median over a constant, and
the limit that it must keep.  The limits are our own: they were set before the
work, from what rivals and bare stand-ins reached.
"""


def row(name, rival):
    """The median of a runtime row, in its unit."""
    return lambda rows, nbd: rows[name]['rivals'][rival]['median']


def best(name, *rivals):
    """The smallest median among rivals, those that are there."""
    return lambda rows, nbd: min(
        rows[name]['rivals'][rival]['median'] for rival in rivals
        if rival in rows[name]['rivals'])


def nbd(name, server, key='per_second'):
    return lambda rows, nbd_rows: nbd_rows[name]['rivals'][server][key][
        'median']


def quicker(text, name, rival, at_least):
    """coaio is `at_least` times as fast as rival, in nanoseconds."""
    return (text, row(name, rival), row(name, 'coaio'), '>=', at_least)


def slower(text, name, rival, at_most):
    """coaio takes at most `at_most` times the rival's nanoseconds."""
    return (text, row(name, 'coaio'), row(name, rival), '<=', at_most)


def served(text, name, server, at_least):
    return (text, nbd(name, 'coaio-nbd'), nbd(name, server), '>=', at_least)


GOALS = [
    quicker('switch, times as fast as the QEMU-like stand-in', 'switch',
            'qemu-like', 10),
    quicker('switch, times as fast as boost.context', 'switch',
            'boost-context', 1.3),
    ('switch in the shared library, times as fast as boost.context',
     row('switch', 'boost-context'), row('switch', 'coaio-shared'), '>=',
     1.3),
    slower('switch over 1,000, to the raw assembly switch', 'switch_1000',
           'limit', 1.3),
    quicker('create and finish, times as fast as boost.context', 'create',
            'boost-context', 1),
    # 20 ns where the limit takes 13.
    slower('create and finish, to the limit', 'create', 'limit', 1.54),
    # 0.5 us where QEMU takes 50.
    quicker('a burst of 1,000 nested, times as fast as the QEMU-like stand-in',
            'burst', 'qemu-like', 100),
    ('memory of each of 100,000 parked coroutines, bytes',
     row('parked', 'coaio'), lambda rows, nbd: 1, '<=', 4300),
    slower('mutex uncontended, to two locked operations', 'mutex_1', 'limit',
           1.25),
    quicker('mutex, 100 waiters, times as fast as State Threads',
            'mutex_w100', 'state-threads', 1),
    slower('mutex, 2 threads, to pthread_mutex', 'mutex_t2', 'pthread', 2),
    slower('mutex, 5 threads, to the fair lock', 'mutex_t5', 'fifo', 1),
    slower('wake-up, busy, to spin-then-futex', 'wake_busy', 'futex', 1.5),
    slower('wake-up, asleep, to eventfd and epoll', 'wake_asleep', 'eventfd',
           1.1),
    ('an idle loop, share of a core', row('idle', 'coaio'),
     lambda rows, nbd: 1e8, '<=', 1e-4),
    quicker('posts, 1 producer, times as fast as the CAS list', 'post_1',
            'cas-list', 0.75),
    quicker('posts, 3 producers, times as fast as the CAS list', 'post_3',
            'cas-list', 0.75),
    ('posts, 1 producer, times as fast as Go and libuv',
     best('post_1', 'go', 'libuv'), row('post_1', 'coaio'), '>=', 1),
    ('posts, 3 producers, times as fast as Go and libuv',
     best('post_3', 'go', 'libuv'), row('post_3', 'coaio'), '>=', 1),
    quicker('timers, arm 1,000, times as fast as libev', 'timer_arm_1000',
            'libev', 1),
    quicker('timers, arm 1,000,000, times as fast as libev', 'timer_arm',
            'libev', 1),
    quicker('timers, cancel 1,000, times as fast as libev',
            'timer_cancel_1000', 'libev', 1),
    quicker('timers, cancel 1,000,000, times as fast as libev',
            'timer_cancel', 'libev', 1),
    quicker('timers, fire 1,000, times as fast as libev', 'timer_fire_1000',
            'libev', 1),
    quicker('timers, fire 100,000, times as fast as libev', 'timer_fire',
            'libev', 1),
    quicker('timers, fire 1,000,000, times as fast as libev',
            'timer_fire_1000000', 'libev', 1),
    served('NBD read 16, to qemu-nbd', 'nbd_read_16', 'qemu-nbd', 5),
    served('NBD read 16, to nbdkit', 'nbd_read_16', 'nbdkit', 2.5),
    ('NBD read 16, CPU a request, to nbdkit',
     nbd('nbd_read_16', 'coaio-nbd', 'cpu_per_million'),
     nbd('nbd_read_16', 'nbdkit', 'cpu_per_million'), '<=', 1 / 3),
    served('NBD read 64, to nbdkit', 'nbd_read_64', 'nbdkit', 4),
    served('NBD read 64, to a pread for each and one send', 'nbd_read_64',
           'batching-loop', 0.75),
    ('NBD read 16 of a disk\'s page cache, system calls a request',
     nbd('nbd_disk_16', 'coaio-nbd', 'calls'), lambda rows, nbd_rows: 1,
     '<=', 0.5),
    served('NBD from memory, to nbdkit', 'nbd_memory_16', 'nbdkit', 2.5),
    served('nbdcopy from the server, to nbdkit', 'nbd_copy_from', 'nbdkit',
           1),
    served('nbdcopy to the server, to nbdkit', 'nbd_copy_to', 'nbdkit', 1),
    served('NBD depth 1, to the blocking loop', 'nbd_read_1',
           'blocking-loop', 1),
    ('NBD two connections, CPU a request, to one',
     nbd('nbd_read_16x2', 'coaio-nbd', 'cpu_per_million'),
     nbd('nbd_read_16', 'coaio-nbd', 'cpu_per_million'), '<=', 1.1),
    ('NBD two connections, total rate, to one',
     nbd('nbd_read_16x2', 'coaio-nbd'), nbd('nbd_read_16', 'coaio-nbd'),
     '>=', 1.3),
    ('NBD read 64, 99.9th percentile, to qemu-nbd',
     nbd('nbd_read_64', 'coaio-nbd', 'p99.9'),
     nbd('nbd_read_64', 'qemu-nbd', 'p99.9'), '<=', 0.5),
    served('NBD 128 KiB in sequence, to the blocking loop', 'nbd_seq',
           'blocking-loop', 0.9),
    served('NBD over TCP, read 16, to nbdkit', 'nbd_tcp_16', 'nbdkit', 2.5),
    served('NBD over TCP, 128 KiB, to the blocking loop', 'nbd_tcp_seq',
           'blocking-loop', 0.95),
]


def judge(rows, nbd_rows):
    verdicts = []
    for text, above, below, comparison, limit in GOALS:
        try:
            value = above(rows, nbd_rows) / below(rows, nbd_rows)
            met = value >= limit if comparison == '>=' else value <= limit
        except (KeyError, ValueError, ZeroDivisionError):
            value = met = None
        said = f'{limit:,.0f}' if limit >= 1000 else f'{limit:.3g}'
        verdicts.append({'text': text, 'value': value, 'met': met,
                         'limit': f'{comparison} {said}'})
    return verdicts
