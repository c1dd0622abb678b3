"""One batch of frames: the replies, their data, and what all the classes do with them."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from .clients cimport Client
from .store cimport Backing
from .view cimport MAX_BINDINGS, Row, Table, View


cdef extern from "atomics.h" nogil:
    uint64_t aoe_add64(uint64_t *p, uint64_t n)


cdef enum:
    HEAD_BYTES = 64
    BODY_BYTES = 1024
    # Frames handled before the replies must be sent; each may add MAX_BINDINGS replies.
    BATCH_FRAMES = 32
    BATCH_REPLIES = BATCH_FRAMES + MAX_BINDINGS


# One row of Server.counters; the layout of server.COUNTERS.
cdef struct Counters:
    uint64_t cold               # reads that a fetch thread answered
    uint64_t spread             # broadcast answers that were put off a little
    uint64_t postponed          # requests beyond a client's queue depth, served after the others
    uint64_t overrun            # requests lost because they were far beyond it
    uint64_t repeats            # probable retransmissions
    uint64_t announced          # config replies that nobody asked for
    uint64_t parked             # writes that waited for a disk on a side thread
    uint64_t reserved[1]
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
    uint64_t spin_ns            # of CPU time spent on looking for frames that were not there
    uint64_t pauses             # batches that were waited for, to be fuller
    uint64_t filled             # and became full


# Header bytes, then `size` bytes from the mapped image or from the batch's bodies.
cdef struct Reply:
    uint8_t head[64]
    const uint8_t *data
    Backing *image              # data points into its mapping, from `sector` on; else NULL
    Backing *sync               # may leave only after this was synced; else NULL
    uint64_t sector
    uint32_t head_size
    uint32_t size
    uint32_t late               # bytes that are still to be written, by a side thread; else 0
    uint32_t failures           # of `sync` before this was written
    uint8_t broadcast           # may be put off a little
    Row *row
    Client *client              # NULL: not to be counted when it leaves
    int64_t arrived             # CLOCK_REALTIME


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
    uint8_t may_park            # whoever calls handle takes writes that must wait
    uint8_t guarded             # SIGBUS is caught: 0 not looked yet, 1 yes, 2 no
    Reply *replies
    uint8_t *body


cdef Batch *new_batch() except NULL
cdef void free_batch(Batch *batch) noexcept nogil
cdef void fail_aoe(Reply *reply, uint8_t error) noexcept nogil
cdef void fail_ata(Reply *reply, uint8_t error) noexcept nogil
cdef void fail_medium(Batch *batch, Reply *reply) noexcept nogil
cdef uint8_t *take_body(Batch *batch) noexcept nogil
cdef void put_data(
    Batch *batch, Reply *reply, uint32_t head_size, const uint8_t *data, uint32_t size
) noexcept nogil


cdef inline void bump(const View *view, uint64_t *counter, uint64_t n) noexcept nogil:
    """Add to what workers alone count in a row. Fanout by MAC gives a row one worker, but for the
    default view. What side threads count as well, latency and errors, is always added atomically.
    """
    if view.shared:
        aoe_add64(counter, n)
    else:
        counter[0] += n


cdef inline void note_first(int64_t *first, int64_t now) noexcept nogil:
    if first[0] == 0:
        first[0] = now


cdef inline int64_t monotonic() noexcept nogil:
    """CLOCK_MONOTONIC in nanoseconds."""
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <int64_t>now.tv_sec * 1000000000 + now.tv_nsec
