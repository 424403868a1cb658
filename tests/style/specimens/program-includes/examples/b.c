/* SPDX-License-Identifier: MIT */
#include "../nbd/a.h"
