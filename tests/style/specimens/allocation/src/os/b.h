/* SPDX-License-Identifier: MIT */
#define GET() malloc(1)
