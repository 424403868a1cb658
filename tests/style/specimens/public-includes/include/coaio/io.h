/* SPDX-License-Identifier: MIT */
#include <stdint.h>
#include <coaio/types.h>
#include "types.h"
#include <coaio/hidden.h>
#include <linux/futex.h>
#include <liburing.h>
