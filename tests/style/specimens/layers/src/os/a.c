/* SPDX-License-Identifier: MIT */
#include "base/list.h"
#include "loop/context.h"
#include <coaio/queue.h>
