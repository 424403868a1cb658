/* SPDX-License-Identifier: MIT */
EXPLORE(code, .marks = {"code: asked "
                        "for"},
        .mutants = {{MUTANT_GOOD, "crash", "f", false},
                    {MUTANT_NOT_IN_CODE, "crash", "f", false},
                    {MUTANT_NOT_TOLD_OF, "crash", "f", false}})
