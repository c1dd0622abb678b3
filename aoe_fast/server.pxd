"""The server: its workers' rooms, its side threads, counters; start and stop."""

from libc.stdint cimport int64_t, uint32_t

from .batch cimport Batch, Counters
from .fetch cimport Fetches
from .parking cimport Parking
from .outbox cimport Outbox
from .spread cimport Spread
from .syncer cimport Queue
from .target cimport Target
from .view cimport Region
from .worker cimport Worker


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
