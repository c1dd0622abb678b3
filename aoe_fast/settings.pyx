"""Classes 1 to 3: what clients may read, and if allowed change, of an export.

Config strings, MAC masks and reservations are held for each export, in memory, under its lock;
statefile.py carries them over a restart.
"""

from libc.stdint cimport uint16_t, uint64_t
from libc.string cimport memcmp, memcpy, memmove, memset

from .batch cimport fail_aoe, put_data
from .store cimport MAX_MACS, MacList, pthread_mutex_lock, pthread_mutex_unlock
from .wire cimport *


cdef extern from "atomics.h" nogil:
    uint64_t aoe_load64(const uint64_t *p)
    uint64_t aoe_add64(uint64_t *p, uint64_t n)


# How often any export's settings changed in this process: the state file looks at it.
cdef uint64_t changed = 0


def changes():
    """How often settings of any export changed so far; a larger number means look again."""
    return aoe_load64(&changed)


cdef void settings_changed() noexcept nogil:
    aoe_add64(&changed, 1)


cdef bint listed(const MacList *macs, const uint8_t *mac) noexcept nogil:
    cdef uint32_t i
    for i in range(macs.count):
        if same_mac(macs.macs[i], mac):
            return True
    return False


cdef bint allows(Backing *backing, const uint8_t *mac) noexcept nogil:
    """The MAC mask list: empty means everyone."""
    cdef bint allowed
    if backing.allowed.count == 0:
        return True
    pthread_mutex_lock(&backing.lock)
    allowed = backing.allowed.count == 0 or listed(&backing.allowed, mac)
    pthread_mutex_unlock(&backing.lock)
    return allowed


cdef bint reserved_for_another(Backing *backing, const uint8_t *mac) noexcept nogil:
    cdef bint refused
    pthread_mutex_lock(&backing.lock)
    refused = backing.holders.count != 0 and not listed(&backing.holders, mac)
    pthread_mutex_unlock(&backing.lock)
    return refused


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
    if command == CONFIG_READ:
        length = 0  # aoeping sends junk there: not one byte of it may be looked at
    elif length > CONFIG_BYTES or length > size - sizeof(ConfigHeader):
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
            settings_changed()
    if answers:
        head.size = htobe16(backing.config_bytes)
        if backing.config_bytes:
            put_data(batch, reply, sizeof(ConfigHeader), backing.config, backing.config_bytes)
    pthread_mutex_unlock(&backing.lock)
    return answers


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
            settings_changed()
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
            settings_changed()
        head.count = <uint8_t>holders.count
        put_data(
            batch, reply, sizeof(ReserveHeader), &holders.macs[0][0], holders.count * MAC_BYTES
        )
    pthread_mutex_unlock(&backing.lock)
