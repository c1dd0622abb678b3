"""One worker thread, without the GIL: harvest, handle, send."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from .backlog cimport Backlog
from .batch cimport Batch, Counters
from .clients cimport Clients
from .fetch cimport Fetches
from .outbox cimport Outbox
from .parking cimport Parking
from .pauses cimport Pauses
from .ring cimport RingState
from .spread cimport Spread
from .syncer cimport Queue
from .view cimport Reader


# A worker's room: filled by its server and its port while the thread is stopped.
cdef struct Worker:
    RingState *rings[2]
    Batch *batch
    Outbox *outbox
    Counters *counters
    Reader *reader
    void **table
    Queue *queue
    Fetches *fetches
    Parking *parking
    Spread *spread
    Clients *clients
    Backlog *backlog
    uint32_t patience           # requests a client may have waiting at once
    int64_t spin_ns
    Pauses pauses
    int stop_fd
    uint32_t *stop


cdef void worker_loop(Worker *worker) noexcept nogil
