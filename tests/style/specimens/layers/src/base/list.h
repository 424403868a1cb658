/* SPDX-License-Identifier: MIT */
#include "../coroutine/co.h"
