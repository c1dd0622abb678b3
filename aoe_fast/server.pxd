"""Worker threads without the GIL: harvest, handle, send; the sync thread; counters."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from .batch cimport Batch, Counters
from .ring cimport Outbox, RingState
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
    int64_t spin_ns
    int stop_fd
    uint32_t *stop


cdef class Server:
    cdef readonly Target target
    cdef readonly tuple interfaces
    cdef readonly int workers
    cdef uint32_t ring_frames
    cdef uint32_t write_frames
    cdef int64_t spin_ns
    cdef Region region
    cdef object _counters
    cdef Worker *_workers
    cdef int _total
    cdef Queue *_queue
    cdef uint32_t _stop
    cdef int _stop_fd
    cdef list _rings
    cdef list _threads
    cdef list _syncers
    cdef int _open(self) except -1
    cdef void _release(self) noexcept
