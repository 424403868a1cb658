# SPDX-License-Identifier: MIT
"""Rivals that no program of bench/ measures, by way of one that is.

Each was measured once beside boost.context: medians of interleaved rounds, on 2
cores of a virtual machine, Linux 6.18, gcc 12; no versions were noted.  So (its
time to boost.context's then) times (boost.context's to ours now) says how many
times as fast we are.  That is derived, not measured, and is marked so: another
machine on another day need not change both of their times alike.
"""

SOURCE = 'of another machine (2 virtual cores, gcc 12)'
BASE = 'boost-context'          # its fcontext

# Nanoseconds, by row of bench/run; two where it is from one to the other.
# QEMU's are of its own test, test-coroutine /perf/yield.
ANCHORS = {
    'switch': {BASE: [10.9], 'libaco': [19], 'minicoro': [24.5],
               'libdill': [34], 'neco': [36], 'Photon': [49],
               'QEMU': [69, 94]},
    'create': {BASE: [40], 'libdill': [38], 'neco': [71], 'Photon': [182]},
}


def derive(rows):
    """How many times as fast coaio is: rival to row to one number or two."""
    table = {}
    for name, anchors in ANCHORS.items():
        rivals = rows.get(name, {}).get('rivals', {})
        if not {BASE, 'coaio'} <= rivals.keys():
            continue
        ahead = rivals[BASE]['median'] / rivals['coaio']['median']
        for rival, ns in anchors.items():
            if rival != BASE:
                table.setdefault(rival, {})[name] = [
                    value / anchors[BASE][0] * ahead for value in ns]
    return table
