"""MAC -> view -> export, swapped atomically under running workers; statistics rows."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from .store cimport Backing


cdef extern from "atomics.h" nogil:
    uint64_t aoe_load64(const uint64_t *p)
    void aoe_store64(uint64_t *p, uint64_t value)
    void *aoe_load_ptr(void **p)
    void aoe_store_ptr(void **p, void *value)


cdef enum:
    # A wildcard request gets one reply for each binding: this bounds a worker's batch.
    MAX_BINDINGS = 256
    MAX_READERS = 256
    ROW_BYTES = 320


# One row of Target.stats; the layout of view.ROW.
cdef struct Row:
    uint64_t queries
    uint64_t identifies
    uint64_t reads
    uint64_t writes
    uint64_t read_bytes
    uint64_t written_bytes
    uint64_t errors
    int64_t first_query_ns
    int64_t first_read_ns
    int64_t first_write_ns
    int64_t last_ns
    uint64_t errors_aoe
    uint64_t errors_abrt
    uint64_t errors_idnf
    uint64_t errors_unc
    uint64_t shared             # of the default view: several workers may write it
    uint64_t latency[24]


cdef struct Binding:
    Backing *backing
    Row *row
    uint16_t shelf
    uint8_t slot


# Immutable once published.
cdef struct View:
    uint64_t key
    uint32_t count
    uint8_t shared              # the default view: several workers may write its rows
    Binding *bindings


# Immutable once published: a change makes a new one.
cdef struct Table:
    uint64_t mask               # slots - 1, a power of two
    uint64_t count
    View *fallback              # for unknown MACs; NULL: they see nothing
    View **slots


# One for each worker, on its own cache line. Odd: inside a batch, may use the table it loaded.
cdef struct Reader:
    uint64_t sequence
    uint64_t taken
    uint64_t padding[6]


cdef inline const View *find_view(const Table *table, uint64_t key) noexcept nogil:
    """The view of a MAC, the default view, or NULL."""
    cdef uint64_t at = spread(key) & table.mask
    while table.slots[at] != NULL:
        if table.slots[at].key == key:
            return table.slots[at]
        at = (at + 1) & table.mask
    return table.fallback


cdef inline uint64_t spread(uint64_t key) noexcept nogil:
    """Fibonacci hashing: a lab's MACs are often consecutive."""
    return (key * <uint64_t>0x9E3779B97F4A7C15) >> 32


cdef inline const Table *enter(Reader *reader, void **table) noexcept nogil:
    """Start a batch: the table that stays valid until ``leave``."""
    aoe_store64(&reader.sequence, reader.sequence + 1)
    return <const Table *>aoe_load_ptr(table)


cdef inline void leave(Reader *reader) noexcept nogil:
    aoe_store64(&reader.sequence, reader.sequence + 1)


cdef class Region:
    cdef void *start
    cdef size_t size


cdef class Views:
    cdef void *table            # Table *, loaded and stored atomically
    cdef Reader *readers
    cdef Region region
    cdef readonly uint32_t max_rows
    cdef object lock
    cdef dict _rows
    cdef dict _held
    cdef list _free
    cdef uint32_t _used
    cdef Reader *add_reader(self) except NULL
    cdef void remove_reader(self, Reader *reader) noexcept
    cdef void wait_for_readers(self) noexcept nogil
    cdef View *_build(self, object mac, dict bindings) except NULL
    cdef int _publish(self, object mac, View *view) except -1
