"""Class 0: ATA commands.

Every failure is an ATA status in a reply without the E flag: that fails one request at once, where
an AoE error makes Linux retry for three minutes and then give the disk up.
"""

from libc.stdint cimport uint64_t
from libc.string cimport memcpy

from .batch cimport bump, fail_aoe, fail_ata, note_first, take_body
from .mapped cimport put_write
from .parking cimport must_park
from .settings cimport reserved_for_another
from .store cimport Backing
from .view cimport Row
from .wire cimport *


cdef extern from "atomics.h" nogil:
    uint32_t aoe_acquire32(const uint32_t *p)


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
        # The address is 48 bits wide if the flag or the opcode says so. Where the two disagree and
        # 0xE leads, the one reading that lies on the disk counts; if both do, nobody guesses.
        if has_device_bits(request, sector):
            if sector < backing.sectors:
                fail_ata(reply, ATA_ABRT)
                return
            sector &= 0x0FFFFFFF
        if count == 0 or count > batch.sectors:
            fail_ata(reply, ATA_ABRT)
        elif writes and (not backing.writable or size - sizeof(AtaHeader) < count * SECTOR):
            fail_ata(reply, ATA_ABRT)
        elif sector >= backing.sectors or count > backing.sectors - sector:
            fail_ata(reply, ATA_IDNF)
        elif writes:
            reply.failures = aoe_acquire32(&backing.failures)
            if batch.may_park and must_park(backing, sector, count):
                reply.late = count * SECTOR
                reply.sector = sector
            elif put_write(
                batch, backing, sector, frame + sizeof(AtaHeader), count * SECTOR
            ) != 0:
                fail_ata(reply, ATA_UNC)
                return
            reply.image = backing
            if backing.durable and reply.late == 0:
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
            reply.failures = aoe_acquire32(&backing.failures)
            reply.sync = backing
    elif opcode == ATA_CHECK_POWER:
        ata.count = 0xFF  # active or idle
    else:
        fail_ata(reply, ATA_ABRT)


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
    if backing.shared:
        # The vendor's words: another server may serve the same bytes (rivals.py).
        put_word(data, 129, 0xAF5D)
        memcpy(data + 260, backing.digest, 32)
    return data
