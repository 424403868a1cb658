/* SPDX-License-Identifier: MIT */

/*
 * [lonely/A] Store before the load. Pairs with [lonely/B].
 */

/* [secret/A] Not documented. */
/* [secret/B] Neither end is. */

/*
 * [whole/A] Both ends and an entry: pairs with
 * [whole/B] below.
 */

/*
 * A sentence first.
 *
 * [whole/B] A paragraph of its own. [whole/C] is only mentioned.
 */
