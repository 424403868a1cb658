/* SPDX-License-Identifier: MIT */
#include "base/list.h"
#include "missing.h"
