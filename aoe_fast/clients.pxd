"""What is known of each client: one table for each worker, which alone writes it."""

from libc.stdint cimport int64_t, uint32_t, uint64_t


cdef enum:
    # Sets of eight: the keys of one set are one cache line.
    WAYS = 8
    SETS = 512
    CLIENTS = SETS * WAYS
    RECENT = 1024
    BUCKETS = 24


# One row of Server.clients; the layout of observe.CLIENT.
cdef struct Client:
    uint64_t mac
    int64_t last_ns
    uint64_t requests
    uint64_t bytes              # of data read and written
    uint32_t sweep              # in which it was counted last, and how often
    uint32_t in_sweep
    uint32_t stuck              # repeats of long replies since the last new long request
    uint32_t small_stuck        # the same of short ones
    uint64_t repeats
    uint64_t postponed
    uint64_t errors_aoe
    uint64_t errors_abrt
    uint64_t errors_idnf
    uint64_t errors_unc
    int64_t last_write_ns
    uint64_t unused[3]
    uint64_t latency[24]


# A request seen not long ago.
cdef struct Seen:
    uint64_t key
    uint32_t tag
    uint32_t ms


cdef struct Clients:
    uint64_t keys[4096]
    Client rows[4096]
    Seen recent[1024]
    uint64_t last_key
    Client *last
    int64_t sweep_ns            # CLOCK_REALTIME; what arrived before it was there all at once
    uint32_t sweep


cdef Client *find_client(Clients *clients, uint64_t key) noexcept nogil
cdef Client *enter_client(Clients *clients, uint64_t key) noexcept nogil
