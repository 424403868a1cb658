/* SPDX-License-Identifier: MIT */
#ifndef COAIO_BASE_EXPLORE_H
#define COAIO_BASE_EXPLORE_H

#define MUTANTS(each)                                                         \
    each(GOOD, "good")                                                        \
    each(NOT_IN_CODE, "not-in-code")                                          \
    each(NOT_LOOKED_FOR, "not-looked-for")                                    \
    each(NOT_TOLD_OF, "not-told-of")

#endif
