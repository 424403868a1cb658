/* SPDX-License-Identifier: MIT */
#define A \
                                                                      b(); \
    ccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc
