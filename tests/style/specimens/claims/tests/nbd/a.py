#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
@case_on_uring_too
def case_a(box):
    pass


@case
def case_b(box):
    pass
