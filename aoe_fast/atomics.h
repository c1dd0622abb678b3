/* The few atomic operations that workers and the control side share (GCC and Clang builtins). */
#ifndef AOE_FAST_ATOMICS_H
#define AOE_FAST_ATOMICS_H

#include <stdint.h>

/* Sequentially consistent: the reader's "I am inside" must be ordered before its load of the
   table, and the control side's swap before its look at the readers. */
static inline uint64_t aoe_load64(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }
static inline void aoe_store64(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); }
static inline void *aoe_load_ptr(void **p) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }
static inline void aoe_store_ptr(void **p, void *v) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); }

/* Ring slots are handed over with acquire and release. */
static inline uint32_t aoe_acquire32(const uint32_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline void aoe_release32(uint32_t *p, uint32_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }

static inline uint32_t aoe_swap32(uint32_t *p, uint32_t v) { return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST); }
static inline uint64_t aoe_add64(uint64_t *p, uint64_t n) { return __atomic_add_fetch(p, n, __ATOMIC_RELAXED); }
static inline uint32_t aoe_count32(uint32_t *p, int n) { return __atomic_add_fetch(p, (uint32_t)n, __ATOMIC_ACQ_REL); }
static inline int64_t aoe_count(int64_t *p, int64_t n) { return __atomic_add_fetch(p, n, __ATOMIC_ACQ_REL); }

static inline void aoe_relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

/* Floor of the binary logarithm; value > 0. */
static inline int aoe_log2(uint64_t value) { return 63 - __builtin_clzll(value); }

static inline void aoe_prefetch(const void *p) { __builtin_prefetch(p); }

#endif
