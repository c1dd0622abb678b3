/* Copies to and from a shared mapping that fail where read and write of the file would: it was
   truncated, its disk is full or bad. The kernel says so with SIGBUS; here it becomes a return value.

   The handler looks at nothing but the thread's own guard and the address: only a fault of the copy
   itself, inside the mapping's range that it reads or writes, jumps back into the copy. Every other
   SIGBUS goes to whoever was there before. What is interrupted is memcpy alone, so nothing is left
   half done but where it copies to, and the caller then goes about it in another way.

   For one module alone: the handler and what it looks at are static. */
#ifndef AOE_FAST_GUARD_H
#define AOE_FAST_GUARD_H

#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/uio.h>

struct aoe_guard {
    const char *start, *end;
    sigjmp_buf back;
};

/* initial-exec: a handler must not have to allocate it. */
static __thread struct aoe_guard *volatile aoe_guarded __attribute__((tls_model("initial-exec")));
static struct sigaction aoe_guard_before;

static void aoe_guard_handle(int number, siginfo_t *info, void *context)
{
    struct aoe_guard *guard = aoe_guarded;
    const char *at = (const char *)info->si_addr;
    if (guard && at >= guard->start && at < guard->end)
        siglongjmp(guard->back, 1);
    /* Not ours: with the former action in place the instruction faults again. */
    sigaction(number, &aoe_guard_before, NULL);
    (void)context;
}

/* Whether a SIGBUS would come here: another library may have taken the signal over. */
static __attribute__((noinline)) int aoe_guard_holds(void)
{
    struct sigaction now;
    return !sigaction(SIGBUS, NULL, &now) && (now.sa_flags & SA_SIGINFO) &&
           now.sa_sigaction == aoe_guard_handle;
}

/* From here on SIGBUS comes here first; once for the process, more often does no harm. */
static void aoe_guard_install(void)
{
    struct sigaction action;
    if (aoe_guard_holds())
        return;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = aoe_guard_handle;
    /* NODEFER: the jump out of the handler must not leave the signal blocked. */
    action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
    sigemptyset(&action.sa_mask);
    sigaction(SIGBUS, &action, &aoe_guard_before);
}

/* A blocked SIGBUS would end the process instead. */
static void aoe_guard_unblock(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGBUS);
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
}

/* 0, or -1 if the mapping could not take it; part of it may have been written. Not inline: setjmp
   would spoil its caller's registers. */
static __attribute__((noinline)) int aoe_guarded_copy(void *to, const void *from, size_t size)
{
    struct aoe_guard guard;
    guard.start = (const char *)to;
    guard.end = guard.start + size;
    if (sigsetjmp(guard.back, 0)) {
        aoe_guarded = NULL;
        return -1;
    }
    aoe_guarded = &guard;
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    memcpy(to, from, size);
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    aoe_guarded = NULL;
    return 0;
}

/* The loop of aoe_guarded_gather, apart from its setjmp; `at`: the pair that it is at. */
static __attribute__((noinline)) uint32_t
aoe_gather(struct aoe_guard *guard, uint8_t *const *to, const struct iovec *parts, uint32_t count,
           volatile uint32_t *at)
{
    for (uint32_t i = 0; i < count; i++, parts += 2) {
        memcpy(to[i], parts[0].iov_base, parts[0].iov_len);
        if (!parts[1].iov_len)
            continue;
        *at = i;
        guard->start = (const char *)parts[1].iov_base;
        guard->end = guard->start + parts[1].iov_len;
        aoe_guarded = guard;
        __atomic_signal_fence(__ATOMIC_SEQ_CST);
        memcpy(to[i] + parts[0].iov_len, parts[1].iov_base, parts[1].iov_len);
        __atomic_signal_fence(__ATOMIC_SEQ_CST);
        aoe_guarded = NULL;
    }
    return count;
}

/* Pair i of `parts` to to[i], one part behind the other; the second one is the mapping's. The number
   of pairs that were copied: all, or those before the first one that could not be read. */
static __attribute__((noinline)) uint32_t
aoe_guarded_gather(uint8_t *const *to, const struct iovec *parts, uint32_t count)
{
    struct aoe_guard guard;
    volatile uint32_t at = 0;
    if (sigsetjmp(guard.back, 0)) {
        aoe_guarded = NULL;
        return at;
    }
    return aoe_gather(&guard, to, parts, count, &at);
}

#endif
