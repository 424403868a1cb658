/* SPDX-License-Identifier: MIT */
#include "base/explore.h"

int f(void)
{
    MARK("code: asked for");
    MARK("code: forgotten");
    return MUTANT(GOOD) || MUTANT(NOT_LOOKED_FOR) || MUTANT(NOT_TOLD_OF);
}
