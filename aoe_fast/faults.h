/* Faults at an export's store, for tests: errors, delays, lies and a log of every call.
 *
 * Only a build with -DPXED_FAULTS has them (setup.py); elsewhere the calls are the constant 0. What is
 * to go wrong is in the environment, read once: AOE_FAULTS="write:every=7:error=28,sync:delay=2000,
 * log=/tmp/calls". every: one call in so many, by count; after: the first so many are spared; error:
 * the errno (default EIO); lose: success is reported and nothing done; delay: microseconds, each call.
 */
#ifndef AOE_FAULTS_H
#define AOE_FAULTS_H

#include <stddef.h>
#include <stdint.h>

enum { AOE_FAULT_READ, AOE_FAULT_WRITE, AOE_FAULT_SYNC, AOE_FAULT_KINDS };

/* Not an errno: report success without doing it. */
#define AOE_FAULT_LOSE (-1)

#ifdef PXED_FAULTS

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct aoe_fault {
    unsigned long every, after, calls;
    unsigned delay_us;
    int code;
};

static struct aoe_fault aoe_faults[AOE_FAULT_KINDS];
static const char *const aoe_fault_names[AOE_FAULT_KINDS] = {"read", "write", "sync"};
static int aoe_fault_log = -1;
static pthread_once_t aoe_fault_once = PTHREAD_ONCE_INIT;

static void aoe_fault_parse(void)
{
    const char *given = getenv("AOE_FAULTS");
    char *text = given ? strdup(given) : NULL, *rest = text, *part;
    while (rest && (part = strsep(&rest, ","))) {
        char *word = strsep(&part, ":");
        struct aoe_fault *fault = NULL;
        if (!strncmp(word, "log=", 4)) {
            aoe_fault_log = open(word + 4, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
            continue;
        }
        for (int kind = 0; kind < AOE_FAULT_KINDS; kind++)
            if (!strcmp(word, aoe_fault_names[kind]))
                fault = &aoe_faults[kind];
        if (!fault) {
            fprintf(stderr, "AOE_FAULTS: unknown word %s\n", word);
            abort();
        }
        fault->code = EIO;
        while (part && (word = strsep(&part, ":"))) {
            const char *value = strchr(word, '=');
            unsigned long number = value ? strtoul(value + 1, NULL, 10) : 0;
            if (!strncmp(word, "every=", 6)) fault->every = number;
            else if (!strncmp(word, "after=", 6)) fault->after = number;
            else if (!strncmp(word, "error=", 6)) fault->code = (int)number;
            else if (!strncmp(word, "delay=", 6)) fault->delay_us = (unsigned)number;
            else if (!strcmp(word, "lose")) fault->code = AOE_FAULT_LOSE;
            else abort();
        }
    }
    free(text);
}

/* What this call is to come to: 0 (do it), an errno, or AOE_FAULT_LOSE. */
static inline int aoe_fault(int kind, uint64_t sector, size_t size)
{
    pthread_once(&aoe_fault_once, aoe_fault_parse);
    struct aoe_fault *fault = &aoe_faults[kind];
    unsigned long call = __atomic_add_fetch(&fault->calls, 1, __ATOMIC_RELAXED);
    int code = 0;
    if (fault->delay_us) usleep(fault->delay_us);
    if (fault->every && call > fault->after && (call - fault->after) % fault->every == 0)
        code = fault->code;
    if (aoe_fault_log >= 0)
        dprintf(aoe_fault_log, "%s %llu %zu %d\n", aoe_fault_names[kind],
                (unsigned long long)sector, size, code);
    return code;
}

/* Whether reads are to fail or wait: then none may bypass the store. */
static inline int aoe_fault_reads(void)
{
    pthread_once(&aoe_fault_once, aoe_fault_parse);
    return aoe_faults[AOE_FAULT_READ].every || aoe_faults[AOE_FAULT_READ].delay_us;
}

/* Then every write goes through the store, too. */
static inline int aoe_faults_built(void) { return 1; }

#else

static inline int aoe_faults_built(void) { return 0; }

static inline int aoe_fault(int kind, uint64_t sector, size_t size)
{
    (void)kind, (void)sector, (void)size;
    return 0;
}

static inline int aoe_fault_reads(void)
{
    return 0;
}

#endif
#endif
