"""Worker threads without the GIL: harvest, handle, send; the sync thread; counters."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from .backlog cimport Backlog
from .batch cimport Batch, Counters
from .clients cimport Clients
from .fetch cimport Fetches
from .parking cimport Parking
from .ring cimport Outbox, RingState
from .spread cimport Spread
from .syncer cimport Queue
from .target cimport Target
from .view cimport Reader, Region


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
    int stop_fd
    uint32_t *stop


cdef void worker_loop(Worker *worker) noexcept nogil


cdef class Server:
    cdef readonly Target target
    cdef readonly tuple interfaces
    cdef readonly int workers
    cdef readonly list ports
    cdef readonly uint32_t ring_frames
    cdef readonly uint32_t write_frames
    cdef readonly uint32_t max_clients
    cdef int64_t spin_ns
    cdef Region region
    cdef object _counters
    cdef Worker *_workers
    cdef int _total
    cdef Queue *_queue
    cdef Fetches *_fetches
    cdef Parking *_parking
    cdef Spread *_spread
    cdef Region _tables
    cdef object _clients
    cdef list _side_threads
    cdef object _caretaker
    cdef object _alarm
    cdef int furnish(self, int number) except -1
    cdef void _release(self)
