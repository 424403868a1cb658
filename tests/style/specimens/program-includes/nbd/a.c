/* SPDX-License-Identifier: MIT */
#include <coaio/io.h>
#include "a.h"
#include "../src/base/list.h"
#include "base/list.h"
