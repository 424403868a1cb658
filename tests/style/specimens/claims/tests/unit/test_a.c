/* SPDX-License-Identifier: MIT */
TEST(case_a)
{
}
