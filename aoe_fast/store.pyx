"""One export's backing: mapping and descriptor, writes, sync.

The mapping is there for the kernel's copy inside sendmmsg, where a truncated file or a bad disk is
EFAULT for one frame and not SIGBUS for the process. User space touches it under a guard alone
(guard.pyx): replies on their way into a send ring, and writes where they are many (mapped.pyx).
"""

import contextlib
import errno as codes
import hashlib
import os
import stat
import zlib

from libc.errno cimport EINTR, EIO, errno
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset
from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap
from posix.types cimport off_t
from posix.unistd cimport close, fdatasync, pread, pwrite, usleep

from .wire cimport SECTOR

from .wire import AoeError


cdef extern from "faults.h" nogil:
    enum:
        AOE_FAULT_READ
        AOE_FAULT_WRITE
        AOE_FAULT_SYNC
        AOE_FAULT_LOSE
    int aoe_fault(int kind, uint64_t sector, size_t size)
    int aoe_faults_built()


cdef extern from "<stdlib.h>" nogil:
    void *aligned_alloc(size_t alignment, size_t size)


cdef extern from "atomics.h" nogil:
    uint32_t aoe_acquire32(const uint32_t *p)


cdef int64_t live = 0


def live_backings():
    """How many backings are open in this process: tests assert that none is leaked."""
    return live


cdef void backing_release(Backing *backing) noexcept nogil:
    """Let go of one reference; the last one unmaps, closes and frees."""
    if aoe_count(&backing.references, -1) > 0:
        return
    if backing.map != NULL:
        munmap(backing.map, backing.map_bytes)
    if backing.fd >= 0:
        close(backing.fd)
    if backing.sync_fd >= 0:
        close(backing.sync_fd)
    pthread_mutex_destroy(&backing.lock)
    free(backing.resident)
    free(backing.heat)
    free(backing)
    aoe_count(&live, -1)


cdef int backing_write(
    Backing *backing, uint64_t sector, const uint8_t *source, size_t size
) noexcept nogil:
    """Write ``size`` bytes at ``sector`` to the page cache; 0 or the errno (ENOSPC, EIO, ...)."""
    cdef off_t at = <off_t>(backing.offset + sector * SECTOR)
    cdef size_t done = 0
    cdef ssize_t put
    cdef int fault = aoe_fault(AOE_FAULT_WRITE, sector, size)
    if fault:
        return 0 if fault == AOE_FAULT_LOSE else fault
    while done < size:
        put = pwrite(backing.fd, source + done, size - done, at + <off_t>done)
        if put > 0:
            done += <size_t>put
        elif put == 0:
            return EIO
        elif errno != EINTR:
            return errno
    return 0


cdef int backing_read(
    Backing *backing, uint64_t sector, uint8_t *into, size_t size
) noexcept nogil:
    """Read ``size`` bytes at ``sector``; 0 or the errno. Past the end of a shrunk file: EIO."""
    cdef off_t at = <off_t>(backing.offset + sector * SECTOR)
    cdef size_t done = 0
    cdef ssize_t got
    cdef int fault = aoe_fault(AOE_FAULT_READ, sector, size)
    if fault:
        return fault
    while done < size:
        got = pread(backing.fd, into + done, size - done, at + <off_t>done)
        if got > 0:
            done += <size_t>got
        elif got == 0:
            return EIO
        elif errno != EINTR:
            return errno
    return 0


cdef int backing_sync(Backing *backing) noexcept nogil:
    """What was written is on the disk when this returns 0; else the errno."""
    return sync_by(backing, backing.fd)


cdef int backing_sync_by(Backing *backing, uint32_t number) noexcept nogil:
    """backing_sync on descriptor 0 or, if there is one, 1, so that two can run at once.

    fdatasync(2): each open file description is told of every error, but once. A sync that runs
    beside another thus learns itself of what the other met.
    """
    return sync_by(backing, backing.sync_fd if number else backing.fd)


cdef int backing_hear(Backing *backing, uint32_t number) noexcept nogil:
    """Have descriptor ``number`` told of what the other one was told: then both are over it.

    The errno that it was told, which may be of something newer as well; 0: there was nothing.
    """
    while fdatasync(backing.sync_fd if number else backing.fd) != 0:
        if errno != EINTR:
            return errno
    return 0


cdef int sync_by(Backing *backing, int fd) noexcept nogil:
    cdef int fault = aoe_fault(AOE_FAULT_SYNC, 0, 0)
    backing.syncs += 1  # two at once may count as one: mapped.pyx only has to see a change
    if fault:
        return 0 if fault == AOE_FAULT_LOSE else fault
    while fdatasync(fd) != 0:
        if errno != EINTR:
            return errno
    return 0


cdef class Export:
    """A file or block device to serve, open until ``close``; a context manager.

    offset and length are bytes, whole sectors. ``durable`` writes are
    acknowledged after fdatasync, ``writeback`` ones from the page cache, synced every few seconds.
    ``close`` lets go at once, but the descriptor and the mapping live until no view uses them.
    AoeError: missing, empty, odd-sized, no file or block device, no permission, in use, bad range.
    """

    def __cinit__(self):
        self.backing = NULL

    def __init__(
        self, path, *, writable=False, durability="durable", offset=0, length=None, serial="",
        force=False,
    ):
        if self.backing != NULL:
            raise RuntimeError("an Export is opened only once")
        name = os.fsdecode(path)
        if durability not in ("durable", "writeback"):
            raise AoeError(f"durability {durability!r}: use durable or writeback")
        raw_serial = serial.encode("ascii", "replace")
        if len(raw_serial) > 20:
            raise AoeError(f"serial {serial!r} has more than 20 characters: shorten it")
        descriptor = _open(name, bool(writable))
        try:
            size = _check(name, descriptor, bool(writable), bool(force))
            first, count = _range(name, size, offset, length)
            if not raw_serial:
                # Stable across restarts and moves of the state directory's parent.
                raw_serial = b"AF%08X" % zlib.crc32(os.fsencode(os.path.basename(name)))
            self._map(name, descriptor, first, count, bool(writable) and durability == "writeback")
        except BaseException:
            os.close(descriptor)
            raise
        memset(self.backing.serial, 32, 20)
        memcpy(self.backing.serial, <const char *>raw_serial, len(raw_serial))
        self.backing.writable = bool(writable)
        self.backing.durable = durability == "durable"
        if self.backing.writable and self.backing.durable:
            # Where there is no /proc one sync runs at a time.
            with contextlib.suppress(OSError):
                self.backing.sync_fd = os.open(
                    f"/proc/self/fd/{descriptor}", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK
                )
        self.path = name
        self.writable = writable
        self.durability = durability
        self.serial = raw_serial.decode()
        self.sectors = count

    cdef int _map(
        self, str name, int descriptor, uint64_t first, uint64_t sectors, bint writes
    ) except -1:
        cdef size_t whole = (sizeof(Backing) + 63) & ~<size_t>63
        cdef Backing *backing = <Backing *>aligned_alloc(64, whole)
        cdef uint64_t skew = first % <uint64_t>os.sysconf("SC_PAGE_SIZE")
        if backing == NULL:
            raise MemoryError()
        memset(backing, 0, whole)
        backing.allowed.macs = backing.allowed_macs
        backing.holders.macs = backing.holder_macs
        backing.map_bytes = <size_t>(sectors * SECTOR + skew)
        backing.map = MAP_FAILED
        if writes and not aoe_faults_built():
            backing.map = mmap(
                NULL, backing.map_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor,
                <off_t>(first - skew),
            )
        if backing.map != MAP_FAILED:
            # No memory for it: every write is a pwrite then.
            backing.heat = <uint32_t *>calloc((sectors >> 7) + 1, sizeof(uint32_t))
        else:
            # For reading alone, also where a file system has no shared writable mappings.
            backing.map = mmap(
                NULL, backing.map_bytes, PROT_READ, MAP_SHARED, descriptor, <off_t>(first - skew)
            )
        if backing.map == MAP_FAILED:
            code = errno
            free(backing)
            advice = "use a plain file or a disk"
            if code == codes.ENOMEM and sectors >> 37:  # 64 TiB
                advice = "more than a process has addresses for: export a part (length=)"
            elif code == codes.ENOMEM:
                advice = "raise vm.max_map_count (sysctl): each export takes one"
            raise AoeError(f"{name}: cannot be mapped ({os.strerror(code)}): {advice}")
        # Nothing is known at first: the first read of each 64 KiB goes through a fetch thread.
        backing.resident = <uint64_t *>calloc(sectors // 8192 + 1, sizeof(uint64_t))
        if backing.resident == NULL:
            munmap(backing.map, backing.map_bytes)
            free(backing.heat)
            free(backing)
            raise MemoryError()
        backing.data = <const uint8_t *>backing.map + skew
        backing.fd = descriptor
        backing.sync_fd = -1
        backing.offset = first
        backing.sectors = sectors
        backing.references = 1
        pthread_mutex_init(&backing.lock, NULL)
        aoe_count(&live, 1)
        self.backing = backing
        return 0

    cdef Backing *open_backing(self) except NULL:
        """The backing, or AoeError after ``close``."""
        if self.backing == NULL:
            raise AoeError(f"{self.path}: this export is closed: open it again")
        return self.backing

    @property
    def closed(self):
        """True after ``close``."""
        return self.backing == NULL

    @property
    def digest(self):
        """SHA-256 of a shared export's bytes, or None."""
        cdef Backing *backing = self.open_backing()
        return <bytes>(<const char *>backing.digest)[:32] if backing.shared else None

    def share(self):
        """Read the whole image, and let IDENTIFY say that it is read-only and what its digest is.

        So another server may have the same image at the same address. AoeError: writable, or it
        cannot be read.
        """
        cdef Backing *backing = self.open_backing()
        if self.writable:
            raise AoeError(f"{self.path}: is writable: only a read-only image can be shared")
        summed = hashlib.sha256()
        at, end = backing.offset, backing.offset + backing.sectors * SECTOR
        while at < end:
            try:
                piece = os.pread(backing.fd, min(end - at, 1 << 20), at)
            except OSError as error:
                raise AoeError(
                    f"{self.path}: cannot be read ({error.strerror}): check the disk"
                ) from None
            if not piece:
                raise AoeError(f"{self.path}: became shorter while it was read")
            summed.update(piece)
            at += len(piece)
        digest = summed.digest()
        memcpy(backing.digest, <const char *>digest, 32)
        backing.shared = True

    def sync(self):
        """Return when everything written so far is on the disk; AoeError if the disk refuses."""
        cdef Backing *backing = self.open_backing()
        cdef int code
        backing_hold(backing)
        with nogil:
            code = backing_sync(backing)
            if code:
                # Whoever waits for a sync thread is told as well: the kernel tells it no more.
                aoe_count32(&backing.failures, 1)
            backing_release(backing)
        if code:
            raise AoeError(f"{self.path}: cannot be synced ({os.strerror(code)}): check the disk")

    def close(self):
        """Sync what is writable and let go; closing twice is fine. AoeError if the sync fails."""
        cdef Backing *backing = self.backing
        cdef int patience = 10000
        cdef int code = 0
        if backing == NULL:
            return
        self.backing = NULL
        with nogil:
            # Nobody else uses the file after this: wait for what is about to be written.
            while aoe_acquire32(&backing.parked) and patience:
                usleep(1000)
                patience -= 1
            if backing.writable:
                code = backing_sync(backing)
            backing_release(backing)
        if code:
            raise AoeError(f"{self.path}: cannot be synced ({os.strerror(code)}): check the disk")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __repr__(self):
        mode = f"rw, {self.durability}" if self.writable else "ro"
        state = ", closed" if self.backing == NULL else ""
        return f"<Export {self.path} {self.sectors} sectors, {mode}{state}>"

    def __dealloc__(self):
        if self.backing != NULL:
            backing_release(self.backing)
            self.backing = NULL


def _open(name, writable):
    flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        return os.open(name, flags)
    except FileNotFoundError:
        raise AoeError(f"{name}: no such file: check the path") from None
    except IsADirectoryError:
        raise AoeError(f"{name}: is a directory: name a file or a block device") from None
    except OSError as error:
        if error.errno in (codes.EMFILE, codes.ENFILE):
            advice = "raise the limit (ulimit -n, LimitNOFILE=): each export takes one"
        elif writable:
            advice = "export it read-only, or make it writable for this user"
        else:
            advice = "check its permissions"
        raise AoeError(f"{name}: cannot be opened ({error.strerror}): {advice}") from None


def _check(name, descriptor, writable, force):
    """The size in bytes of what is open; AoeError if it cannot or should not be exported."""
    state = os.fstat(descriptor)
    if stat.S_ISDIR(state.st_mode):
        raise AoeError(f"{name}: is a directory: name a file or a block device")
    if stat.S_ISBLK(state.st_mode):
        where = None if force else mounted_read_write(state.st_rdev)
        if where is not None:
            raise AoeError(f"{name}: is mounted read-write on {where}: unmount it, or use force")
        where = mounted(state.st_rdev) if writable and not force else None
        if where is not None:
            raise AoeError(
                f"{name}: is mounted on {where}: unmount it, export it read-only, or use force"
            )
        if writable and _is_read_only(state.st_rdev):
            raise AoeError(f"{name}: is a read-only device: export it read-only")
        size = os.lseek(descriptor, 0, os.SEEK_END)
    elif stat.S_ISREG(state.st_mode):
        # Root may open anything: the mode still says what its owner meant.
        if writable and not state.st_mode & 0o222:
            raise AoeError(f"{name}: is marked read-only: chmod u+w it, or export it read-only")
        size = state.st_size
    else:
        raise AoeError(f"{name}: is not a file or a block device: name one of these")
    if size == 0:
        raise AoeError(f"{name}: is empty: give it a size first (truncate -s)")
    return size


def _is_read_only(device):
    """Whether each write to this block device would fail; some kernels open it for writing."""
    path = f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/ro"
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return file.read().strip() == b"1"
    return False


def _range(name, size, offset, length):
    """(first byte, sectors) of the part to serve."""
    if offset < 0 or offset % SECTOR or offset >= size:
        raise AoeError(
            f"{name}: offset {offset} must be a multiple of {SECTOR} below the size, {size}"
        )
    served = size - offset if length is None else length
    if served < 0 or served > size - offset:
        raise AoeError(f"{name}: length {length} is not within the {size - offset} bytes there")
    if served < SECTOR:
        raise AoeError(f"{name}: {served} bytes are less than one sector: need {SECTOR} at least")
    if served % SECTOR:
        # Its end would be cut off without a word.
        raise AoeError(
            f"{name}: {served} bytes are {served % SECTOR} more than whole sectors of {SECTOR}:"
            f" pad it (truncate -s %{SECTOR}), or give length={served - served % SECTOR}"
        )
    return offset, served // SECTOR


def mounted(device, mountinfo=None):
    """Where block device number ``device``, or a partition of it, is mounted at all, or None."""
    return mounted_read_write(device, mountinfo, ("rw", "ro"))


def mounted_read_write(device, mountinfo=None, modes=("rw",)):
    """Where block device number ``device``, or a partition of it, is mounted read-write, or None.

    proc_pid_mountinfo(5): field 3 is major:minor, 5 the mount point, the last the options of the
    superblock. ``mountinfo`` is that file's text; default: this process's own.
    """
    numbers = {f"{os.major(device)}:{os.minor(device)}"}
    own = f"/sys/dev/block/{os.major(device)}:{os.minor(device)}"
    try:
        for child in os.listdir(own):
            if os.path.exists(f"{own}/{child}/partition"):
                with open(f"{own}/{child}/dev", encoding="ascii") as file:
                    numbers.add(file.read().strip())
    except OSError:
        pass  # no sysfs here: the device itself is still looked for
    if mountinfo is None:
        try:
            with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
                mountinfo = file.read()
        except OSError:
            return None
    for line in mountinfo.splitlines():
        fields = line.split()
        options = fields[len(fields) - 1].split(",") if len(fields) > 6 else ()
        if fields[2] in numbers and any([mode in options for mode in modes]):
            return fields[4]
    return None
