"""MAC -> view -> export, swapped atomically under running workers; statistics rows.

A change builds a new table (a copy of pointers: microseconds for thousands of clients), swaps one
pointer, waits until every worker has passed a point where it held no table (read-copy-update),
and then frees what it replaced. So when set_view returns, nobody is answered by the old view, and
no worker ever takes a lock. A table, and a view in it, never changes once workers can see it.
"""

import threading

import numpy as np

from cpython.buffer cimport PyBuffer_FillInfo
from libc.stdlib cimport free
from libc.string cimport memcpy, memset
from posix.mman cimport (
    MAP_ANONYMOUS, MAP_FAILED, MAP_NORESERVE, MAP_PRIVATE, PROT_READ, PROT_WRITE, mmap, munmap,
)
from posix.unistd cimport usleep

from .memory cimport give, take
from .store cimport Export, backing_hold, backing_release
from .wire cimport ANY_SLOT, FORBIDDEN_SHELF, mac_key

from .wire import AoeError

_COUNTS = ["queries", "identifies", "reads", "writes", "read_bytes", "written_bytes", "errors"]
_TIMES = ["first_query_ns", "first_read_ns", "first_write_ns", "last_ns"]

_KINDS = ["errors_aoe", "errors_abrt", "errors_idnf", "errors_unc", "shared"]

ROW = np.dtype({
    "names": [*_COUNTS, *_TIMES, *_KINDS, "latency"],
    "formats": ["u8"] * len(_COUNTS) + ["i8"] * len(_TIMES) + ["u8"] * len(_KINDS) + ["(24,)u8"],
    "itemsize": ROW_BYTES,
})
assert sizeof(Row) == ROW_BYTES


cdef extern from "<stdlib.h>" nogil:
    void *aligned_alloc(size_t alignment, size_t size)


cdef class Region:
    """Zeroed anonymous memory with the buffer protocol; touched pages only cost memory."""

    def __cinit__(self, size_t size):
        self.start = mmap(
            NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0
        )
        if self.start == MAP_FAILED:
            self.start = NULL
            raise MemoryError(f"cannot map {size} bytes")
        self.size = size

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.start, <Py_ssize_t>self.size, 0, flags)

    def __dealloc__(self):
        # Views of the buffer hold a reference: nobody can look at it any more.
        if self.start != NULL:
            munmap(self.start, self.size)


cdef Table *_new_table(uint64_t slots) except NULL:
    """An empty table of ``slots``, a power of two; its slots follow it in memory."""
    cdef Table *table = <Table *>take(sizeof(Table) + slots * sizeof(View *))
    if table == NULL:
        raise MemoryError()
    table.mask = slots - 1
    table.slots = <View **>(table + 1)
    return table


cdef void _insert(Table *table, View *view) noexcept nogil:
    cdef uint64_t at = spread(view.key) & table.mask
    while table.slots[at] != NULL:
        if table.slots[at].key == view.key:
            table.slots[at] = view
            return
        at = (at + 1) & table.mask
    table.slots[at] = view
    table.count += 1


cdef Table *_changed(const Table *old, uint64_t key, View *view) except NULL:
    """A copy of ``old`` in which ``key`` has ``view`` (NULL: has none)."""
    cdef uint64_t slots = old.mask + 1
    cdef uint64_t at
    cdef Table *new
    if view != NULL and 2 * (old.count + 1) <= slots:
        new = _new_table(slots)
        memcpy(new.slots, old.slots, slots * sizeof(View *))
        new.count = old.count
    else:
        # Grown at half full; a removal would leave a hole in a chain, so it rehashes too.
        new = _new_table(slots if view == NULL else 2 * slots)
        for at in range(slots):
            if old.slots[at] != NULL and old.slots[at].key != key:
                _insert(new, old.slots[at])
    if view != NULL:
        _insert(new, view)
    new.fallback = old.fallback
    return new


cdef void _free_view(View *view) noexcept nogil:
    cdef uint32_t i
    if view != NULL:
        for i in range(view.count):
            backing_release(view.bindings[i].backing)
        give(view)


cdef class Views:
    """The view of every MAC, and the statistics rows behind them.

    Any thread may change views; one change at a time. AoeError: bad MAC or address, closed
    export, no statistics row left.
    """

    def __cinit__(self, uint32_t max_rows=65536):
        self.max_rows = max_rows
        self.region = Region(<size_t>max_rows * ROW_BYTES)
        self.lock = threading.Lock()
        self._rows = {}
        self._held = {}
        self._free = []
        self._used = 0
        self.readers = <Reader *>aligned_alloc(64, MAX_READERS * sizeof(Reader))
        if self.readers == NULL:
            raise MemoryError()
        memset(self.readers, 0, MAX_READERS * sizeof(Reader))
        self.table = _new_table(16)

    def __dealloc__(self):
        cdef Table *table = <Table *>self.table
        cdef uint64_t at
        if table != NULL:
            for at in range(table.mask + 1):
                _free_view(table.slots[at])
            _free_view(table.fallback)
            give(table)
        free(self.readers)

    cdef Reader *add_reader(self) except NULL:
        """A reader for one worker, until ``remove_reader``; AoeError when there are too many."""
        cdef int i
        with self.lock:
            for i in range(MAX_READERS):
                if not self.readers[i].taken:
                    self.readers[i].taken = 1
                    return &self.readers[i]
        raise AoeError(f"more than {MAX_READERS} workers: use fewer interfaces or workers")

    cdef void remove_reader(self, Reader *reader) noexcept:
        reader.taken = 0

    cdef void wait_for_readers(self) noexcept nogil:
        """Return when no worker can hold a table that was replaced before this call."""
        cdef uint64_t seen
        cdef int i
        for i in range(MAX_READERS):
            seen = aoe_load64(&self.readers[i].sequence)
            while (seen & 1) and aoe_load64(&self.readers[i].sequence) == seen:
                usleep(10)

    def set_view(self, mac, bindings):
        """Replace the whole view of ``mac`` (None: of unknown MACs) by {(shelf, slot): Export}."""
        cdef View *view
        mac = _checked_mac(mac)
        exports = _checked(bindings)
        with self.lock:
            keys = {(mac, shelf, slot) for shelf, slot in exports}
            added = [key for key in keys if key not in self._rows]
            if len(added) > len(self._free) + self.max_rows - self._used:
                raise AoeError(
                    f"all {self.max_rows} statistics rows are in use: drop views, or raise max_rows"
                )
            view = self._build(mac, exports)
            for key in added:
                self._rows[key] = self._new_row()
            self._bind_rows(mac, exports, <size_t>view)
            self._publish(mac, view)
            for shelf, slot in self._held.get(mac, ()):
                if (shelf, slot) not in exports:
                    self._free.append(self._rows.pop((mac, shelf, slot)))
            # The exports live as long as the view, even if their maker forgets them.
            self._held[mac] = exports

    def drop_view(self, mac):
        """Forget the view of ``mac``: it gets the default view. Unknown MACs are fine."""
        mac = _checked_mac(mac)
        with self.lock:
            if mac not in self._held:
                return
            self._publish(mac, NULL)
            for shelf, slot in self._held.pop(mac):
                self._free.append(self._rows.pop((mac, shelf, slot)))

    cdef View *_build(self, object mac, dict bindings) except NULL:
        """A view with no rows yet, holding its backings; nothing is held if this raises."""
        cdef size_t count = len(bindings)
        cdef Binding *binding
        cdef Export export
        cdef View *view = <View *>take(sizeof(View) + count * sizeof(Binding))
        if view == NULL:
            raise MemoryError()
        view.bindings = <Binding *>(view + 1)
        view.shared = mac is None
        if mac is not None:
            view.key = mac_key(<const uint8_t *><const char *>mac)
        try:
            for (shelf, slot), export in bindings.items():
                binding = &view.bindings[view.count]
                binding.shelf = shelf
                binding.slot = slot
                binding.backing = export.open_backing()
                backing_hold(binding.backing)
                view.count += 1
        except BaseException:
            _free_view(view)
            raise
        return view

    def _bind_rows(self, mac, bindings, size_t address):
        cdef View *view = <View *>address
        cdef Row *rows = <Row *>self.region.start
        cdef uint32_t i = 0
        for shelf, slot in bindings:
            view.bindings[i].row = &rows[<uint32_t>self._rows[mac, shelf, slot]]
            view.bindings[i].row.shared = view.shared
            i += 1

    def _new_row(self):
        cdef uint32_t row
        if self._free:
            row = self._free.pop()
            memset(<Row *>self.region.start + row, 0, sizeof(Row))
        else:
            row = self._used
            self._used += 1
        return row

    cdef int _publish(self, object mac, View *view) except -1:
        """Swap the table, wait for the workers, free the table and the view that were replaced."""
        cdef Table *old = <Table *>self.table
        cdef Table *new
        cdef View *replaced
        cdef uint64_t key = 0
        try:
            if mac is None:
                new = _changed(old, <uint64_t>1 << 63, NULL)
                replaced = old.fallback
                new.fallback = view
            else:
                key = mac_key(<const uint8_t *><const char *>mac)
                replaced = <View *>find_view(old, key)
                if replaced == old.fallback:
                    replaced = NULL
                new = _changed(old, key, view)
        except BaseException:
            _free_view(view)
            raise
        aoe_store_ptr(&self.table, new)
        with nogil:
            self.wait_for_readers()
            give(old)
            _free_view(replaced)
        return 0

    def rows(self):
        """{(mac or None, shelf, slot): row number in ``stats``}, a copy."""
        with self.lock:
            return dict(self._rows)

    def exports(self):
        """Every Export that a view binds, once."""
        with self.lock:
            return list({id(e): e for held in self._held.values() for e in held.values()}.values())

    def view_of(self, mac):
        """What ``mac`` sees, {(shelf, slot): Export}: its own view or the default one."""
        with self.lock:
            return dict(self._held.get(mac, self._held.get(None, {})))

    def stats(self):
        """Every row, zero-copy and writable: structured array of ROW."""
        return np.frombuffer(self.region, dtype=ROW)


def _checked_mac(mac):
    if mac is None:
        return None
    mac = bytes(mac)
    if len(mac) != 6:
        raise AoeError(f"MAC {mac.hex(':')!r} has {len(mac)} bytes: give 6")
    if mac[0] & 1:
        raise AoeError(f"MAC {mac.hex(':')} is a group address: give a machine's own")
    return mac


def _checked(bindings):
    if len(bindings) > MAX_BINDINGS:
        raise AoeError(f"{len(bindings)} devices in one view: {MAX_BINDINGS} at most")
    for (shelf, slot), export in bindings.items():
        if not 0 <= shelf < 0xFFFF or shelf == FORBIDDEN_SHELF:
            raise AoeError(f"shelf {shelf}: use 0 to 65534, but not 4095 (Linux discards it)")
        if not 0 <= slot < ANY_SLOT:
            raise AoeError(f"slot {slot}: use 0 to 254")
        if not isinstance(export, Export):
            raise TypeError(f"{shelf}.{slot}: need an Export, not {type(export).__name__}")
    return dict(bindings)
