/* SPDX-License-Identifier: MIT */
/*
 * The exploring twin of base/atomic.h: the same names, each operation handed
 * to the explorer with the place where it stands.  See tests/explore/explore.h.
 *
 * fence_seq_cst_after_rmw() is a real fence here: it stands for the machines on
 * which a read-modify-write is none.
 */
#ifndef COAIO_BASE_ATOMIC_H
#define COAIO_BASE_ATOMIC_H

#include <stdbool.h>
#include <stdint.h>

typedef enum ExOrder {
    EX_RELAXED = 0,
    EX_ACQUIRE = 1,
    EX_RELEASE = 2,
    EX_ACQ_REL = 3,
} ExOrder;

typedef enum ExOp {
    EX_ADD,
    EX_SUB,
    EX_OR,
    EX_AND,
    EX_XCHG,
} ExOp;

/* Where an operation stands in the source. */
typedef struct ExSite {
    const char *file;
    const char *function;
    const char *text; /* the operand, or the operation if it has none */
    int line;
} ExSite;

uint64_t ex_load(const volatile void *p, unsigned size, ExOrder order,
                 const ExSite *site);
void ex_store(volatile void *p, unsigned size, uint64_t value, ExOrder order,
              const ExSite *site);
uint64_t ex_rmw(volatile void *p, unsigned size, ExOp op, uint64_t operand,
                ExOrder order, const ExSite *site);
bool ex_cas(volatile void *p, unsigned size, void *expected, uint64_t value,
            ExOrder order, ExOrder failed, const ExSite *site);
void ex_fence(const ExSite *site);
void ex_spin(void);

#define EX_SITE(text)                                                     \
    ({                                                                    \
        static const ExSite site_ = {__FILE__, __func__, text, __LINE__}; \
        &site_;                                                           \
    })

/* The type of *p without its qualifiers. */
#define EX_TYPE(p) __typeof__(*(p) + 0)

/* A value of that type as a word; the initialization checks the type. */
#define EX_WORD(p, v)            \
    ({                           \
        EX_TYPE(p) value_ = (v); \
        (uint64_t) value_;       \
    })

#define EX_LOAD(p, order)                                                 \
    ({                                                                    \
        uint64_t found_ = ex_load((p), sizeof(*(p)), order, EX_SITE(#p)); \
        (EX_TYPE(p)) found_;                                              \
    })
#define EX_STORE(p, v, order) \
    ex_store((p), sizeof(*(p)), EX_WORD(p, v), order, EX_SITE(#p))
#define EX_RMW(p, op, v, order)                                               \
    ({                                                                        \
        uint64_t found_ =                                                     \
            ex_rmw((p), sizeof(*(p)), op, EX_WORD(p, v), order, EX_SITE(#p)); \
        (EX_TYPE(p)) found_;                                                  \
    })
#define EX_CAS(p, expected, v, order, failed)                           \
    ex_cas((p), sizeof(*(p)), (expected), EX_WORD(p, v), order, failed, \
           EX_SITE(#p))

#define load_relaxed(p)     EX_LOAD(p, EX_RELAXED)
#define load_acquire(p)     EX_LOAD(p, EX_ACQUIRE)
#define store_relaxed(p, v) EX_STORE(p, v, EX_RELAXED)
#define store_release(p, v) EX_STORE(p, v, EX_RELEASE)

#define xchg_relaxed(p, v) EX_RMW(p, EX_XCHG, v, EX_RELAXED)
#define xchg_acquire(p, v) EX_RMW(p, EX_XCHG, v, EX_ACQUIRE)
#define xchg_release(p, v) EX_RMW(p, EX_XCHG, v, EX_RELEASE)
#define xchg_acq_rel(p, v) EX_RMW(p, EX_XCHG, v, EX_ACQ_REL)

#define cas_relaxed(p, e, v) EX_CAS(p, e, v, EX_RELAXED, EX_RELAXED)
#define cas_acquire(p, e, v) EX_CAS(p, e, v, EX_ACQUIRE, EX_RELAXED)
#define cas_release(p, e, v) EX_CAS(p, e, v, EX_RELEASE, EX_RELAXED)
#define cas_acq_rel(p, e, v) EX_CAS(p, e, v, EX_ACQ_REL, EX_ACQUIRE)

#define fetch_add_relaxed(p, v) EX_RMW(p, EX_ADD, v, EX_RELAXED)
#define fetch_add_release(p, v) EX_RMW(p, EX_ADD, v, EX_RELEASE)
#define fetch_add_acq_rel(p, v) EX_RMW(p, EX_ADD, v, EX_ACQ_REL)
#define fetch_sub_relaxed(p, v) EX_RMW(p, EX_SUB, v, EX_RELAXED)
#define fetch_sub_acq_rel(p, v) EX_RMW(p, EX_SUB, v, EX_ACQ_REL)
#define fetch_or_acq_rel(p, v)  EX_RMW(p, EX_OR, v, EX_ACQ_REL)
#define fetch_and_acq_rel(p, v) EX_RMW(p, EX_AND, v, EX_ACQ_REL)

#define fence_seq_cst()           ex_fence(EX_SITE("fence_seq_cst"))
#define fence_seq_cst_after_rmw() ex_fence(EX_SITE("fence_seq_cst_after_rmw"))
#define fence_signal()            __asm__ volatile("" ::: "memory")

#define spin_hint() ex_spin()

#endif
