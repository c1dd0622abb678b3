"""handle(frame) -> replies: the whole protocol, no socket.

Source: AoE revision 11, corrected by what initiators do (the rules are listed in docs/protocol).
Silence means: no reply, counted. A client that may not see a device must not learn that it is
there, so an address that its view does not have is silence for every command class.

An error that Linux should act on is an ATA status: it drops replies with the E flag and retries
for three minutes.
"""

from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memmove, memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from .store cimport (
    MAX_MACS, MacList, backing_read, backing_sync, backing_write, pthread_mutex_lock,
    pthread_mutex_unlock,
)
from .view cimport Binding, Row, View, find_view
from .wire cimport *

from .wire import AoeError


cdef extern from "atomics.h" nogil:
    uint64_t aoe_add64(uint64_t *p, uint64_t n)


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
                    if not allows(binding.backing, request.src):
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


cdef bint listed(const MacList *macs, const uint8_t *mac) noexcept nogil:
    cdef uint32_t i
    for i in range(macs.count):
        if same_mac(macs.macs[i], mac):
            return True
    return False


cdef inline bint allows(Backing *backing, const uint8_t *mac) noexcept nogil:
    """The MAC mask list: empty means everyone."""
    cdef bint allowed
    if backing.allowed.count == 0:
        return True
    pthread_mutex_lock(&backing.lock)
    allowed = backing.allowed.count == 0 or listed(&backing.allowed, mac)
    pthread_mutex_unlock(&backing.lock)
    return allowed


cdef inline void bump(const View *view, uint64_t *counter, uint64_t n) noexcept nogil:
    """Add to a statistics row. Fanout by MAC gives a row one writer, but for the default view."""
    if view.shared:
        aoe_add64(counter, n)
    else:
        counter[0] += n


cdef inline void note_first(int64_t *first, int64_t now) noexcept nogil:
    if first[0] == 0:
        first[0] = now


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
    reply.size = 0
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
        bump(view, &binding.row.errors, 1)
    elif head.command == CLASS_ATA and reply.head[27] & 1:
        batch.counters.ata_errors += 1
        bump(view, &binding.row.errors, 1)


cdef void fail_aoe(Reply *reply, uint8_t error) noexcept nogil:
    cdef AoeHeader *head = <AoeHeader *>reply.head
    head.version_flags |= FLAG_ERROR
    head.error = error


cdef void fail_ata(Reply *reply, uint8_t error) noexcept nogil:
    """Turn an ATA reply into a failure: status DRDY|ERR and ``error``, no data."""
    cdef AtaHeader *ata = <AtaHeader *>reply.head
    ata.command_status = STATUS_FAILED
    ata.error_feature = error
    reply.data = NULL
    reply.image = NULL
    reply.sync = NULL
    reply.size = 0
    reply.head_size = SHORTEST_REPLY


cdef uint8_t *take_body(Batch *batch) noexcept nogil:
    """BODY_BYTES of zeroes for one reply's data."""
    cdef uint8_t *body = batch.body + <size_t>batch.bodies * BODY_BYTES
    batch.bodies += 1
    memset(body, 0, BODY_BYTES)
    return body


cdef void answer_ata(
    Batch *batch, Reply *reply, const View *view, const Binding *binding,
    const uint8_t *frame, uint32_t size
) noexcept nogil:
    """Class 0. READ data stays in the image; a durable WRITE and FLUSH ask for a sync first."""
    cdef const AtaHeader *request = <const AtaHeader *>frame
    cdef AtaHeader *ata = <AtaHeader *>reply.head
    cdef Backing *backing = binding.backing
    cdef Row *row = binding.row
    cdef uint8_t opcode = request.command_status
    cdef uint64_t sector = ata_lba(request)
    cdef uint32_t count = request.count
    cdef bint writes = opcode == ATA_WRITE or opcode == ATA_WRITE_EXT

    if backing.holders.count != 0 and opcode != ATA_IDENTIFY:
        if reserved_for_another(backing, request.aoe.src):
            fail_aoe(reply, ERROR_RESERVED)
            return
    ata.aflags = request.aflags
    ata.count = request.count
    ata.command_status = STATUS_READY
    memcpy(ata.lba, request.lba, 6)

    if writes or opcode == ATA_READ or opcode == ATA_READ_EXT:
        # The address is 28 or 48 bits wide as the E flag says; either opcode may carry either.
        if count == 0 or count > batch.sectors:
            fail_ata(reply, ATA_ABRT)
        elif writes and (not backing.writable or size - sizeof(AtaHeader) < count * SECTOR):
            fail_ata(reply, ATA_ABRT)
        elif sector >= backing.sectors or count > backing.sectors - sector:
            fail_ata(reply, ATA_IDNF)
        elif writes:
            if backing_write(backing, sector, frame + sizeof(AtaHeader), count * SECTOR) != 0:
                fail_ata(reply, ATA_UNC)
                return
            reply.image = backing
            if backing.durable:
                reply.sync = backing
            bump(view, &row.writes, 1)
            bump(view, &row.written_bytes, count * SECTOR)
            note_first(&row.first_write_ns, batch.now_ns)
        else:
            reply.head_size = sizeof(AtaHeader)
            reply.image = backing
            reply.sector = sector
            reply.data = backing.data + sector * SECTOR
            reply.size = count * SECTOR
            bump(view, &row.reads, 1)
            bump(view, &row.read_bytes, count * SECTOR)
            note_first(&row.first_read_ns, batch.now_ns)
    elif opcode == ATA_IDENTIFY:
        reply.head_size = sizeof(AtaHeader)
        reply.data = identify(take_body(batch), backing)
        reply.size = SECTOR
        bump(view, &row.identifies, 1)
        note_first(&row.first_query_ns, batch.now_ns)
    elif opcode == ATA_FLUSH or opcode == ATA_FLUSH_EXT:
        if backing.writable:
            reply.sync = backing
    elif opcode == ATA_CHECK_POWER:
        ata.count = 0xFF  # active or idle
    else:
        fail_ata(reply, ATA_ABRT)


cdef bint reserved_for_another(Backing *backing, const uint8_t *mac) noexcept nogil:
    cdef bint refused
    pthread_mutex_lock(&backing.lock)
    refused = backing.holders.count != 0 and not listed(&backing.holders, mac)
    pthread_mutex_unlock(&backing.lock)
    return refused


cdef inline void put_word(uint8_t *data, uint32_t word, uint64_t value) noexcept nogil:
    data[2 * word] = <uint8_t>(value & 0xFF)
    data[2 * word + 1] = <uint8_t>((value >> 8) & 0xFF)


cdef void put_text(uint8_t *data, uint32_t word, const char *text, uint32_t size) noexcept nogil:
    """An ATA string: the two characters of each word are swapped, spaces to the end."""
    cdef uint32_t i
    cdef bint ended = False
    for i in range(size):
        ended = ended or text[i] == 0
        data[2 * word + (i ^ 1)] = <uint8_t>32 if ended else <uint8_t>text[i]


cdef uint8_t *identify(uint8_t *data, const Backing *backing) noexcept nogil:
    """512 bytes of IDENTIFY DEVICE (ATA/ATAPI-6, 8.15), in ``data``, which it returns."""
    cdef uint64_t sectors = backing.sectors
    cdef uint64_t small = sectors if sectors < 0x0FFFFFFF else 0x0FFFFFFF
    cdef uint64_t cylinders = small // (16 * 63)
    cdef uint64_t chs
    cdef uint32_t i
    if cylinders > 16383:
        cylinders = 16383
    chs = cylinders * 16 * 63
    put_word(data, 0, 0x0040)  # ATA, fixed
    put_word(data, 1, cylinders)
    put_word(data, 3, 16)
    put_word(data, 6, 63)
    put_text(data, 10, backing.serial, 20)
    put_text(data, 23, b"0.1.0", 8)
    put_text(data, 27, b"aoe_fast", 40)
    put_word(data, 47, 0x8000)
    put_word(data, 49, 0x0200)  # LBA
    put_word(data, 53, 0x0001)  # 54-58 hold
    put_word(data, 54, cylinders)
    put_word(data, 55, 16)
    put_word(data, 56, 63)
    for i in range(2):
        put_word(data, 57 + i, chs >> (16 * i))
        put_word(data, 60 + i, small >> (16 * i))
    put_word(data, 80, 0x007E)  # ATA-1 to ATA-6
    # 83 and 86: FLUSH CACHE EXT 13, FLUSH CACHE 12, LBA48 10. No SMART, no write cache to turn on.
    put_word(data, 82, 0)
    put_word(data, 83, 0x7400)
    put_word(data, 84, 0x4000)
    put_word(data, 85, 0)
    put_word(data, 86, 0x3400)
    put_word(data, 87, 0x4000)
    for i in range(4):
        put_word(data, 100 + i, sectors >> (16 * i))
    return data


cdef bint answer_config(
    Batch *batch, Reply *reply, Backing *backing, const uint8_t *frame, uint32_t size
) noexcept nogil:
    """Class 1; False for silence, where a test does not match.

    Without ``wire_config`` a set or force that would change the string gets error 4, the one
    error that says "the string stays as it is".
    """
    cdef const ConfigHeader *request = <const ConfigHeader *>frame
    cdef ConfigHeader *head = <ConfigHeader *>reply.head
    cdef const uint8_t *text = frame + sizeof(ConfigHeader)
    cdef uint32_t length = be16toh(request.size)
    cdef uint8_t command = request.version_command & 0x0F
    cdef bint same
    cdef bint answers = True

    if command > CONFIG_FORCE:
        fail_aoe(reply, ERROR_ARGUMENT)
        return True
    # A plain read ignores the length: aoeping sends junk there.
    if command != CONFIG_READ and (length > CONFIG_BYTES or length > size - sizeof(ConfigHeader)):
        fail_aoe(reply, ERROR_ARGUMENT)
        return True
    head.buffers = htobe16(batch.buffers)
    head.firmware = htobe16(1)
    head.sectors = batch.sectors
    head.version_command = <uint8_t>((AOE_VERSION << 4) | command)

    pthread_mutex_lock(&backing.lock)
    same = length == backing.config_bytes and memcmp(backing.config, text, length) == 0
    if command == CONFIG_TEST:
        answers = same
    elif command == CONFIG_PREFIX:
        answers = (
            length <= backing.config_bytes and memcmp(backing.config, text, length) == 0
        )
    elif (command == CONFIG_SET or command == CONFIG_FORCE) and not same:
        if not batch.wire_config or (command == CONFIG_SET and backing.config_bytes != 0):
            fail_aoe(reply, ERROR_CONFIG_PRESENT)
        else:
            memcpy(backing.config, text, length)
            backing.config_bytes = <uint16_t>length
    if answers:
        head.size = htobe16(backing.config_bytes)
        if backing.config_bytes:
            put_data(batch, reply, sizeof(ConfigHeader), backing.config, backing.config_bytes)
    pthread_mutex_unlock(&backing.lock)
    return answers


cdef void put_data(
    Batch *batch, Reply *reply, uint32_t head_size, const uint8_t *data, uint32_t size
) noexcept nogil:
    """Put ``size`` bytes behind the first ``head_size`` of the header: in it if they fit there."""
    cdef uint8_t *body
    if head_size + size <= SHORTEST_REPLY:
        memcpy(reply.head + head_size, data, size)
        return
    body = take_body(batch)
    memcpy(body, data, size)
    reply.head_size = head_size
    reply.data = body
    reply.size = size


cdef void answer_mask(
    Batch *batch, Reply *reply, Backing *backing, const uint8_t *frame, uint32_t size
) noexcept nogil:
    """Class 2: the list of MACs that may see the device. Every reply carries the list as it is.

    Without ``wire_reserve`` an edit is refused with merror 1: one frame could lock everyone out.
    """
    cdef const MaskHeader *request = <const MaskHeader *>frame
    cdef const Directive *directives = <const Directive *>(frame + sizeof(MaskHeader))
    cdef MaskHeader *head = <MaskHeader *>reply.head
    cdef uint8_t listing[64 * 8]
    cdef uint32_t i

    if request.command > MASK_EDIT or (
        request.command == MASK_EDIT
        and size - sizeof(MaskHeader) < request.count * sizeof(Directive)
    ):
        fail_aoe(reply, ERROR_ARGUMENT)
        return
    head.command = request.command
    pthread_mutex_lock(&backing.lock)
    if request.command == MASK_EDIT:
        if not batch.wire_reserve:
            head.error = MERROR_UNSPECIFIED
        else:
            # Those before a bad one stay applied.
            for i in range(request.count):
                head.error = edit(&backing.allowed, directives[i].command, directives[i].mac)
                if head.error:
                    break
    head.count = <uint8_t>backing.allowed.count
    memset(listing, 0, sizeof(listing))
    for i in range(backing.allowed.count):
        memcpy(&listing[8 * i + 2], backing.allowed.macs[i], MAC_BYTES)
    put_data(batch, reply, sizeof(MaskHeader), listing, 8 * backing.allowed.count)
    pthread_mutex_unlock(&backing.lock)


cdef uint8_t edit(MacList *macs, uint8_t command, const uint8_t *mac) noexcept nogil:
    """Apply one directive; 0 or the merror."""
    cdef uint32_t i
    if command == DIRECTIVE_NOP:
        return 0
    if command == DIRECTIVE_ADD:
        if listed(macs, mac):
            return 0
        if macs.count == MAX_MACS:
            return MERROR_FULL
        memcpy(macs.macs[macs.count], mac, MAC_BYTES)
        macs.count += 1
        return 0
    if command == DIRECTIVE_DELETE:
        for i in range(macs.count):
            if same_mac(macs.macs[i], mac):
                macs.count -= 1
                memmove(macs.macs[i], macs.macs[i + 1], (macs.count - i) * MAC_BYTES)
                break
        return 0
    return MERROR_DIRECTIVE


cdef void answer_reserve(
    Batch *batch, Reply *reply, Backing *backing, const uint8_t *frame, uint32_t size
) noexcept nogil:
    """Class 3: the MACs that hold the device; every success carries the list.

    Without ``wire_reserve`` a set or force gets error 6: nobody may change who holds it.
    """
    cdef const ReserveHeader *request = <const ReserveHeader *>frame
    cdef ReserveHeader *head = <ReserveHeader *>reply.head
    cdef MacList *holders = &backing.holders
    cdef uint32_t count = request.count

    if request.command > RESERVE_FORCE:
        fail_aoe(reply, ERROR_ARGUMENT)
        return
    if request.command != RESERVE_READ and (
        count > MAX_MACS or size - sizeof(ReserveHeader) < count * MAC_BYTES
    ):
        fail_aoe(reply, ERROR_ARGUMENT)
        return
    head.command = request.command
    pthread_mutex_lock(&backing.lock)
    if request.command != RESERVE_READ and (
        not batch.wire_reserve or (
            request.command == RESERVE_SET
            and holders.count != 0
            and not listed(holders, request.aoe.src)
        )
    ):
        fail_aoe(reply, ERROR_RESERVED)
    else:
        if request.command != RESERVE_READ:
            memcpy(holders.macs, frame + sizeof(ReserveHeader), count * MAC_BYTES)
            holders.count = count
        head.count = <uint8_t>holders.count
        put_data(
            batch, reply, sizeof(ReserveHeader), &holders.macs[0][0], holders.count * MAC_BYTES
        )
    pthread_mutex_unlock(&backing.lock)


cdef Batch *new_batch() except NULL:
    """Room for BATCH_REPLIES replies; ``free_batch`` it."""
    cdef Batch *batch = <Batch *>calloc(1, sizeof(Batch))
    if batch != NULL:
        batch.replies = <Reply *>calloc(BATCH_REPLIES, sizeof(Reply))
        batch.body = <uint8_t *>calloc(BATCH_REPLIES, BODY_BYTES)
        if batch.replies != NULL and batch.body != NULL:
            return batch
        free_batch(batch)
    raise MemoryError()


cdef void free_batch(Batch *batch) noexcept nogil:
    if batch != NULL:
        free(batch.replies)
        free(batch.body)
        free(batch)


cdef class Target:
    """What is served to whom, and the protocol; needs no socket.

    bufcnt: the queue depth offered to each client (Linux takes half of it at first, and a window
    of 0 from 1: refused). wire_config, wire_reserve: clients may change config strings, or MAC
    masks and reservations, with frames that nobody authenticates; reading is always allowed.
    These three are held for each Export, in memory, and shared by the views that bind it.
    """

    def __cinit__(self, *, bufcnt=64, wire_config=False, wire_reserve=False, max_rows=65536):
        if not 2 <= bufcnt <= 0xFFFF:
            raise AoeError(f"bufcnt {bufcnt}: use 2 to 65535 (1 gives Linux a window of 0)")
        if not 1 <= max_rows <= 1 << 24:
            raise AoeError(f"max_rows {max_rows}: use 1 to {1 << 24}")
        self.bufcnt = bufcnt
        self.wire_config = wire_config
        self.wire_reserve = wire_reserve
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
        self.views.set_view(mac, bindings)

    def drop_view(self, mac):
        """The MAC falls back to the default view; unknown MACs are fine."""
        self.views.drop_view(mac)

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
