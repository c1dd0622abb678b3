/* A copy into a shared mapping that fails where a store into a file would: the file was truncated,
   its disk is full or bad. The kernel says so with SIGBUS; here it becomes a return value.

   The handler looks at nothing but the thread's own guard and the address: only a fault of the copy
   itself, inside the range that it writes to, jumps back into the copy. Every other SIGBUS goes to
   whoever was there before. What is interrupted is memcpy alone, so nothing is left half done but
   the range, which the caller then writes in another way. */
#ifndef AOE_FAST_GUARD_H
#define AOE_FAST_GUARD_H

#include <setjmp.h>
#include <signal.h>
#include <string.h>

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

#endif
