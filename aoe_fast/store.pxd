"""One export's backing: mapping and descriptor, writes, sync."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from "atomics.h" nogil:
    int64_t aoe_count(int64_t *p, int64_t n)
    uint32_t aoe_count32(uint32_t *p, int n)


cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t *mutex, const void *attributes)
    int pthread_mutex_destroy(pthread_mutex_t *mutex)
    int pthread_mutex_lock(pthread_mutex_t *mutex)
    int pthread_mutex_unlock(pthread_mutex_t *mutex)


cdef enum:
    # So that a whole list of directives, like a config string, fits a 1500-byte frame.
    MAX_MACS = 64


ctypedef uint8_t Mac[6]


cdef struct MacList:
    uint32_t count
    Mac *macs                   # room for MAX_MACS


# Shared by the Export, every view that binds it and every acknowledgement that waits for its
# sync; the last one to let go unmaps and closes, so a worker can never see it half gone.
# Its first cache line is what a read looks at.
cdef struct Backing:
    const uint8_t *data         # sector 0 in the mapping: for the kernel's copy and mapped.pyx
    uint64_t sectors
    uint64_t *resident          # a bit for each 64 KiB known to be in memory; NULL: all always is
    # What clients may change over the wire, guarded by the lock; the counts are also read
    # without it, to skip an empty list.
    MacList allowed
    MacList holders
    int fd
    uint8_t writable
    uint8_t durable
    uint8_t syncs               # so many until now, modulo 256
    uint8_t shared              # IDENTIFY carries the digest
    uint64_t offset             # bytes of the file before sector 0
    int sync_fd                 # durable: the file's second description, for a second sync; else -1
    uint32_t dirty              # on the sync threads' list
    uint32_t failures           # syncs that failed: what was written before one fails with it
    uint32_t parked             # writes that wait for a disk; later ones line up behind them
    int64_t references
    uint32_t *heat              # for each 64 KiB what was written since the last sync; or NULL
    void *map
    size_t map_bytes
    char serial[20]
    uint8_t digest[32]
    uint8_t restored            # a state file has had its say
    pthread_mutex_t lock
    Mac allowed_macs[64]
    Mac holder_macs[64]
    uint16_t config_bytes
    uint8_t config[1024]


cdef inline void backing_hold(Backing *backing) noexcept nogil:
    aoe_count(&backing.references, 1)

cdef void backing_release(Backing *backing) noexcept nogil
cdef int backing_write(
    Backing *backing, uint64_t sector, const uint8_t *source, size_t size
) noexcept nogil
cdef int backing_read(
    Backing *backing, uint64_t sector, uint8_t *into, size_t size
) noexcept nogil
cdef int backing_sync(Backing *backing) noexcept nogil
cdef int backing_sync_by(Backing *backing, uint32_t number) noexcept nogil
cdef int backing_hear(Backing *backing, uint32_t number) noexcept nogil


cdef class Export:
    cdef Backing *backing
    cdef readonly str path
    cdef readonly str durability
    cdef readonly str serial
    cdef readonly uint64_t sectors
    cdef readonly bint writable
    cdef Backing *open_backing(self) except NULL
    cdef int _map(
        self, str name, int descriptor, uint64_t first, uint64_t sectors, bint writes
    ) except -1
