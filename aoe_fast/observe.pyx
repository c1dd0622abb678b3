"""Statistics for each client and each binding, taken beside the data path.

Latency is from the kernel's time stamp of the request in the ring to the return of the send call
that carried the reply: two loads and two additions for a frame, one look at the clock for a batch.
"""

import numpy as np

from libc.string cimport memcpy
from posix.time cimport clock_gettime, timespec

from .batch cimport Reply
from .clients cimport BUCKETS, Client, Seen, enter_client, find_client
from .wire cimport *


cdef extern from "atomics.h" nogil:
    int aoe_log2(uint64_t value)
    uint64_t aoe_add64(uint64_t *p, uint64_t n)


cdef extern from "<time.h>" nogil:
    enum:
        CLOCK_REALTIME


cdef enum:
    # A request that comes again so long after the first copy is taken for a repetition: Linux and
    # iPXE wait 100 ms at least, and Linux 16.5 s for its first one.
    REPEAT_AFTER_MS = 50
    REPEAT_WITHIN_MS = 20000
    # After its first loss Linux repeats one request at a time, up to 64 in turn, until it gives
    # the disk up: then one comes again later than that, after a pause of 20 s / 64.
    REPEAT_LATEST_MS = 180000
    REPEAT_ALONE_NS = 300000000
    # More than any 1500-byte link carries.
    LONG_REPLY = 1500

_NAMES = [
    ("mac", "u8"), ("last_ns", "i8"), ("requests", "u8"), ("bytes", "u8"),
    ("sweep", "u4"), ("in_sweep", "u4"), ("stuck", "u4"), ("small_stuck", "u4"),
    ("repeats", "u8"), ("postponed", "u8"),
    ("errors_aoe", "u8"), ("errors_abrt", "u8"), ("errors_idnf", "u8"), ("errors_unc", "u8"),
    ("last_write_ns", "i8"), ("unused", "u8", (3,)), ("latency", "u8", (BUCKETS,)),
]
CLIENT = np.dtype(_NAMES)
assert CLIENT.itemsize == sizeof(Client)

# Upper bounds of the latency buckets in seconds; the last one has none.
BOUNDS = [float(1 << (10 + bucket)) / 1e9 for bucket in range(BUCKETS - 1)]


cdef int64_t realtime() noexcept nogil:
    """CLOCK_REALTIME in nanoseconds: the clock of the ring's time stamps."""
    cdef timespec now
    clock_gettime(CLOCK_REALTIME, &now)
    return <int64_t>now.tv_sec * 1000000000 + now.tv_nsec


cdef inline int bucket_of(int64_t ns) noexcept nogil:
    """0: less than 1.024 us; each further bucket twice as long. A clock that was set back: 0."""
    cdef int bucket
    if ns < 1024:
        return 0
    bucket = aoe_log2(<uint64_t>ns) - 9
    return bucket if bucket < BUCKETS else BUCKETS - 1


cdef bint is_greedy(
    Clients *clients, const uint8_t *frame, int64_t arrived, uint32_t patience
) noexcept nogil:
    """Whether this client had more than ``patience`` requests waiting at one moment.

    All that arrived before the sweep began was in the ring together; so a client that keeps to
    its queue depth is never greedy, however busy the others are.
    """
    cdef Client *client
    if arrived > clients.sweep_ns:
        clients.sweep_ns = realtime()
        clients.sweep += 1
    client = find_client(clients, mac_key(frame + MAC_BYTES))
    if client == NULL:
        return False
    if client.sweep != clients.sweep:
        client.sweep = clients.sweep
        client.in_sweep = 0
    client.in_sweep += 1
    if client.in_sweep <= patience:
        return False
    client.postponed += 1
    return True


cdef inline uint64_t sample_of(const uint8_t *data, uint32_t size) noexcept nogil:
    """A number that tells most payloads apart: 8 bytes in each 72 of the first 1024."""
    cdef uint64_t mixed = 0
    cdef uint64_t word
    cdef uint32_t at = 24
    while at + 8 <= size and at < 1024:
        memcpy(&word, data + at, 8)
        mixed = (mixed ^ word) * <uint64_t>0x9E3779B97F4A7C15
        at += 72
    return mixed


cdef inline bint is_repeat(
    Clients *clients, const AtaHeader *request, uint32_t size, uint64_t mac, int64_t now_ns,
    bint alone
) noexcept nogil:
    """Whether this client asked the same thing not long ago; remembers that it did now.

    A write of other data to the same place is another request: file systems do that all the time.
    ``alone``: this client has asked for nothing else for a while.
    """
    cdef uint64_t key = (
        ata_lba(request) ^ mac << 16 ^ <uint64_t>request.count << 48
        ^ <uint64_t>request.command_status << 56 ^ <uint64_t>request.aoe.slot << 40
        ^ sample_of(<const uint8_t *>request + sizeof(AtaHeader), size - sizeof(AtaHeader))
    )
    cdef Seen *seen = &clients.recent[(key * <uint64_t>0x9E3779B97F4A7C15) >> 54]
    cdef uint32_t ms = <uint32_t>(now_ns // 1000000)
    cdef uint32_t since = ms - seen.ms
    cdef uint32_t latest = REPEAT_LATEST_MS if alone else REPEAT_WITHIN_MS
    cdef bint again = (
        seen.key == key and since >= REPEAT_AFTER_MS and since <= latest
    )
    seen.key = key
    seen.ms = ms
    return again


cdef void note_frame(
    Clients *clients, Batch *batch, uint32_t first, const uint8_t *frame, uint32_t size,
    int64_t arrived
) noexcept nogil:
    """Count one request that has replies, those of ``batch`` from ``first`` on."""
    cdef const AoeHeader *header = <const AoeHeader *>frame
    cdef uint64_t mac = mac_key(header.src)
    cdef Client *client = enter_client(clients, mac)
    cdef bint alone = batch.now_ns - client.last_ns >= REPEAT_ALONE_NS
    cdef bint broadcast = is_broadcast(header.dst) and header.command != CLASS_MASK
    cdef uint8_t opcode
    cdef Reply *reply
    cdef uint32_t i
    client.requests += 1
    client.last_ns = batch.now_ns
    for i in range(first, batch.count):
        reply = &batch.replies[i]
        reply.client = client
        reply.arrived = arrived
        # Only what discovers: answers that somebody waits for with data are never put off.
        reply.broadcast = broadcast and reply.image == NULL and reply.sync == NULL
        if reply.image != NULL:
            if reply.size:
                client.bytes += reply.size
            else:
                client.bytes += size - sizeof(AtaHeader)
                client.last_write_ns = batch.now_ns
        if (<AoeHeader *>reply.head).version_flags & FLAG_ERROR:
            client.errors_aoe += 1
        elif header.command == CLASS_ATA and reply.head[27] & 1:
            if reply.head[25] == ATA_ABRT:
                client.errors_abrt += 1
            elif reply.head[25] == ATA_IDNF:
                client.errors_idnf += 1
            else:
                aoe_add64(&client.errors_unc, 1)
    if header.command != CLASS_ATA:
        return
    opcode = (<const AtaHeader *>frame).command_status
    if opcode != ATA_IDENTIFY and batch.replies[first].image == NULL:
        return
    if is_repeat(clients, <const AtaHeader *>frame, size, mac, batch.now_ns, alone):
        client.repeats += 1
        batch.counters.repeats += 1
        if batch.replies[first].size > LONG_REPLY:
            client.stuck += 1
        else:
            client.small_stuck += 1
    elif batch.replies[first].size > LONG_REPLY:
        client.stuck = 0
    else:
        client.small_stuck = 0


cdef void note_sent(Batch *batch) noexcept nogil:
    """Count the latency of the batch's replies that have left; those with client NULL have not."""
    cdef int64_t now = realtime()
    cdef Reply *reply
    cdef int bucket
    cdef uint32_t i
    for i in range(batch.count):
        reply = &batch.replies[i]
        if reply.client == NULL:
            continue
        bucket = bucket_of(now - reply.arrived)
        # Workers and side threads answer one client at the same time.
        aoe_add64(&reply.client.latency[bucket], 1)
        aoe_add64(&reply.row.latency[bucket], 1)
