"""handle(frame) -> replies: the whole protocol, no socket."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from .store cimport Backing
from .view cimport MAX_BINDINGS, Table, Views


cdef enum:
    HEAD_BYTES = 64
    BODY_BYTES = 1024
    # Frames handled before the replies must be sent; each may add MAX_BINDINGS replies.
    BATCH_FRAMES = 32
    BATCH_REPLIES = BATCH_FRAMES + MAX_BINDINGS


# One row of Server.counters; the layout of server.COUNTERS.
cdef struct Counters:
    uint64_t frames
    uint64_t replies
    uint64_t ignored
    uint64_t runt
    uint64_t response_flag
    uint64_t group_source
    uint64_t not_ours
    uint64_t ata_errors
    uint64_t aoe_errors
    uint64_t drops
    uint64_t send_errors
    uint64_t batches
    uint64_t syncs
    uint64_t unused[3]


# Header bytes, then `size` bytes from the mapped image or from the batch's bodies.
cdef struct Reply:
    uint8_t head[64]
    const uint8_t *data
    Backing *image              # data points into its mapping, from `sector` on; else NULL
    Backing *sync               # may leave only after this was synced; else NULL
    uint64_t sector
    uint32_t head_size
    uint32_t size


cdef struct Batch:
    const Table *table
    Counters *counters
    int64_t now_ns
    uint32_t count
    uint32_t bodies             # of `body` in use
    uint16_t buffers            # the advertised queue depth
    uint8_t sectors             # for each frame, advertised and accepted
    uint8_t mac[6]
    uint8_t wire_config
    uint8_t wire_reserve
    Reply *replies
    uint8_t *body


cdef uint32_t handle(Batch *batch, const uint8_t *frame, uint32_t size) noexcept nogil
cdef void fail_ata(Reply *reply, uint8_t error) noexcept nogil
cdef Batch *new_batch() except NULL
cdef void free_batch(Batch *batch) noexcept nogil


cdef class Target:
    cdef Views views
    cdef readonly uint16_t bufcnt
    cdef readonly bint wire_config
    cdef readonly bint wire_reserve
    cdef object _stats
    cdef Batch *_batch
    cdef Counters _counters
    cdef int prepare(self, Batch *batch, uint32_t mtu) except -1
