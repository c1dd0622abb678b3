"""handle(frame) -> replies: the whole protocol, no socket.

Source: AoE revision 11, corrected by what real initiators do and check.
Silence means: no reply, counted. A client that may not see a device must not learn that it is
there, so an address that its view does not have is silence for every command class.

An error that Linux should act on is an ATA status: it drops replies with the E flag and retries
for three minutes.
"""

from libc.stdint cimport int64_t
from libc.string cimport memcpy, memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from .ata cimport answer_ata
from .batch cimport (
    HEAD_BYTES, Reply, aoe_add64, bump, fail_aoe, fail_ata, free_batch, new_batch, note_first,
)
from .settings cimport allows, answer_config, answer_mask, answer_reserve
from .store cimport backing_read, backing_sync
from .view cimport Binding, Table, View, find_view
from .wire cimport *

from .statefile import StateFile
from .wire import AoeError


cdef uint32_t handle(Batch *batch, const uint8_t *frame, uint32_t size) noexcept nogil:
    """Append the replies to one received frame; returns how many (0: silence).

    ``frame`` starts at the Ethernet header. The batch has room for MAX_BINDINGS more replies.
    """
    cdef const AoeHeader *request = <const AoeHeader *>frame
    cdef Counters *counters = batch.counters
    cdef uint32_t before = batch.count
    cdef bint found = False
    cdef const View *view
    cdef Binding *binding
    cdef uint16_t shelf
    cdef uint32_t i

    counters.frames += 1
    if size < sizeof(AoeHeader) or size < shortest_request(request.command):
        counters.runt += 1
    elif request.version_flags & FLAG_RESPONSE:
        counters.response_flag += 1
    elif request.src[0] & 1:
        counters.group_source += 1
    else:
        if is_ours(batch, request):
            view = find_view(batch.table, mac_key(request.src))
            if view != NULL:
                shelf = be16toh(request.shelf)
                for i in range(view.count):
                    binding = &view.bindings[i]
                    if shelf != ANY_SHELF and shelf != binding.shelf:
                        continue
                    if request.slot != ANY_SLOT and request.slot != binding.slot:
                        continue
                    if not (
                        binding.backing.allowed.count == 0
                        or allows(binding.backing, request.src)
                    ):
                        continue
                    found = True
                    answer(batch, view, binding, frame, size)
        if not found:
            counters.not_ours += 1
        else:
            return batch.count - before
    counters.ignored += 1
    return 0


cdef inline bint is_ours(const Batch *batch, const AoeHeader *request) noexcept nogil:
    return be16toh(request.ethertype) == ETHERTYPE_AOE and (
        same_mac(request.dst, batch.mac) or is_broadcast(request.dst)
    )


cdef void answer(
    Batch *batch, const View *view, const Binding *binding, const uint8_t *frame, uint32_t size
) noexcept nogil:
    """Append one binding's reply, if the command calls for one."""
    cdef const AoeHeader *request = <const AoeHeader *>frame
    cdef Reply *reply = &batch.replies[batch.count]
    cdef AoeHeader *head = <AoeHeader *>reply.head
    cdef bint answers = True

    memset(reply.head, 0, HEAD_BYTES)
    memcpy(head.dst, request.src, MAC_BYTES)
    memcpy(head.src, batch.mac, MAC_BYTES)
    head.ethertype = request.ethertype
    head.version_flags = (AOE_VERSION << 4) | FLAG_RESPONSE
    # The device's own address, even if the request used a wildcard.
    head.shelf = htobe16(binding.shelf)
    head.slot = binding.slot
    head.command = request.command
    memcpy(head.tag, request.tag, 4)
    reply.data = NULL
    reply.image = NULL
    reply.sync = NULL
    reply.row = binding.row
    reply.client = NULL
    reply.size = 0
    reply.late = 0
    reply.head_size = SHORTEST_REPLY
    binding.row.last_ns = batch.now_ns

    if request.version_flags >> 4 != AOE_VERSION:
        fail_aoe(reply, ERROR_VERSION)
    elif request.command == CLASS_ATA:
        answer_ata(batch, reply, view, binding, frame, size)
    elif request.command == CLASS_CONFIG:
        bump(view, &binding.row.queries, 1)
        note_first(&binding.row.first_query_ns, batch.now_ns)
        answers = answer_config(batch, reply, binding.backing, frame, size)
    elif request.command == CLASS_MASK:
        answer_mask(batch, reply, binding.backing, frame, size)
    elif request.command == CLASS_RESERVE:
        answer_reserve(batch, reply, binding.backing, frame, size)
    else:
        fail_aoe(reply, ERROR_COMMAND)
    if not answers:
        return
    batch.count += 1
    if head.version_flags & FLAG_ERROR:
        batch.counters.aoe_errors += 1
        aoe_add64(&binding.row.errors, 1)
        aoe_add64(&binding.row.errors_aoe, 1)
    elif head.command == CLASS_ATA and reply.head[27] & 1:
        batch.counters.ata_errors += 1
        aoe_add64(&binding.row.errors, 1)
        if reply.head[25] == ATA_ABRT:
            aoe_add64(&binding.row.errors_abrt, 1)
        elif reply.head[25] == ATA_IDNF:
            aoe_add64(&binding.row.errors_idnf, 1)
        else:
            aoe_add64(&binding.row.errors_unc, 1)


cdef class Target:
    """What is served to whom, and the protocol; needs no socket.

    bufcnt: the queue depth offered to each client (Linux takes half of it at first, and a window
    of 0 from 1: refused). wire_config, wire_reserve: clients may change config strings, or MAC
    masks and reservations, with frames that nobody authenticates; reading is always allowed.
    These three are held for each Export and shared by the views that bind it; ``state`` is a file
    that carries them over a restart (statefile.StateFile). AoeError: a damaged state file.
    """

    def __cinit__(
        self, *, bufcnt=64, wire_config=False, wire_reserve=False, max_rows=65536, state=None,
    ):
        if not 2 <= bufcnt <= 0xFFFF:
            raise AoeError(f"bufcnt {bufcnt}: use 2 to 65535 (1 gives Linux a window of 0)")
        if not 1 <= max_rows <= 1 << 24:
            raise AoeError(f"max_rows {max_rows}: use 1 to {1 << 24}")
        self.bufcnt = bufcnt
        self.wire_config = wire_config
        self.wire_reserve = wire_reserve
        self.state = None if state is None else StateFile(state)
        self.views = Views(max_rows)
        self._stats = self.views.stats()
        self._batch = new_batch()

    def __dealloc__(self):
        free_batch(self._batch)

    cdef int prepare(self, Batch *batch, uint32_t mtu) except -1:
        """Set what this target and a link of ``mtu`` bytes decide in a batch."""
        batch.sectors = sectors_for_mtu(mtu)
        if batch.sectors == 0:
            raise AoeError(f"MTU {mtu} is too small for a sector: set it to 1500, or 9000")
        batch.buffers = self.bufcnt
        batch.wire_config = self.wire_config
        batch.wire_reserve = self.wire_reserve
        return 0

    def set_view(self, mac, bindings):
        """Replace the whole view of ``mac`` (None: of unknown MACs) by {(shelf, slot): Export}.

        When it returns, no worker answers by the old view. AoeError: bad MAC or address, closed
        export, no statistics row left.
        """
        self.save_state()
        if self.state is not None:
            self.state.restore(set(bindings.values()))
        self.views.set_view(mac, bindings)

    def drop_view(self, mac):
        """The MAC falls back to the default view; unknown MACs are fine."""
        self.save_state()
        self.views.drop_view(mac)

    def exports(self):
        """Every Export that a view binds, once."""
        return self.views.exports()

    def view_of(self, mac):
        """What ``mac`` sees, {(shelf, slot): Export}: its own view or the default one."""
        return self.views.view_of(mac)

    def save_state(self):
        """Write the state file if there is one and a setting changed; never on the data path.

        None, or one line of text: why it cannot be written. It is tried again by each call.
        """
        return None if self.state is None else self.state.save(self.views.exports)

    def rows(self):
        """{(mac or None, shelf, slot): row number in ``stats``}, a copy."""
        return self.views.rows()

    @property
    def stats(self):
        """Statistics, zero-copy and writable: structured array of view.ROW, one row a binding."""
        return self._stats

    def handle(self, frame, own_mac, mtu=1500):
        """The replies to one Ethernet frame, as the server would send them on a link of ``mtu``.

        Durable writes and FLUSH are synced before it returns.
        """
        cdef const uint8_t[::1] view
        cdef timespec now
        cdef Batch *batch = self._batch
        cdef Reply *reply
        cdef bytearray data
        cdef uint32_t i
        cdef int code
        cdef const uint8_t *start
        cdef uint32_t size
        frame = bytes(frame)
        own_mac = bytes(own_mac)
        if len(own_mac) != MAC_BYTES:
            raise AoeError(f"own_mac has {len(own_mac)} bytes: give {MAC_BYTES}")
        start = <const uint8_t *><const char *>frame
        size = <uint32_t>len(frame)
        replies = []
        # The lock keeps the table from being freed: this is no registered reader.
        with self.views.lock:
            self.prepare(batch, mtu)
            memcpy(batch.mac, <const char *>own_mac, MAC_BYTES)
            clock_gettime(CLOCK_MONOTONIC, &now)
            batch.now_ns = <int64_t>now.tv_sec * 1000000000 + now.tv_nsec
            batch.table = <const Table *>self.views.table
            batch.counters = &self._counters
            batch.count = 0
            batch.bodies = 0
            batch.guarded = 0
            with nogil:
                handle(batch, start, size)
            for i in range(batch.count):
                reply = &batch.replies[i]
                if reply.sync != NULL:
                    with nogil:
                        code = backing_sync(reply.sync)
                    if code:
                        fail_ata(reply, ATA_UNC)
                data = bytearray(reply.size)
                if reply.size:
                    view = data
                    if reply.image == NULL:
                        memcpy(<uint8_t *>&view[0], reply.data, reply.size)
                    else:
                        with nogil:
                            code = backing_read(
                                reply.image, reply.sector, <uint8_t *>&view[0], reply.size
                            )
                        if code:
                            fail_ata(reply, ATA_UNC)
                            data = bytearray()
                    view = None
                replies.append(<bytes>(<char *>reply.head)[:reply.head_size] + bytes(data))
        return replies
