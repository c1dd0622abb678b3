"""AoE revision 11 on the wire: packed structs, constants, byte order. Pure: no I/O, no state."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp


cdef extern from "<endian.h>" nogil:
    uint16_t htobe16(uint16_t value)
    uint16_t be16toh(uint16_t value)


cdef enum:
    ETHERTYPE_AOE = 0x88A2
    MAC_BYTES = 6
    SECTOR = 512
    # Shorter replies are dropped by aoeping and aoecfg, and veth does not pad.
    SHORTEST_REPLY = 60

    AOE_VERSION = 1
    FLAG_RESPONSE = 0x08
    FLAG_ERROR = 0x04
    ANY_SHELF = 0xFFFF
    ANY_SLOT = 0xFF
    # Linux takes shelf 4095 for a broadcast and discards it.
    FORBIDDEN_SHELF = 4095

    CLASS_ATA = 0
    CLASS_CONFIG = 1
    CLASS_MASK = 2
    CLASS_RESERVE = 3

    # AoE errors (section 2 of the specification): with the E flag.
    ERROR_COMMAND = 1
    ERROR_ARGUMENT = 2
    ERROR_CONFIG_PRESENT = 4
    ERROR_VERSION = 5
    ERROR_RESERVED = 6

    # Class 0.
    AFLAG_LBA48 = 0x40
    DEVICE_BITS = 0xE           # high nibble of lba3 in the old task file: LBA mode, device 0
    ATA_READ = 0x20
    ATA_READ_EXT = 0x24
    ATA_WRITE = 0x30
    ATA_WRITE_EXT = 0x34
    ATA_CHECK_POWER = 0xE5
    ATA_FLUSH = 0xE7
    ATA_FLUSH_EXT = 0xEA
    ATA_IDENTIFY = 0xEC
    STATUS_READY = 0x40
    STATUS_FAILED = 0x41
    ATA_ABRT = 0x04
    ATA_IDNF = 0x10
    ATA_UNC = 0x40

    # Class 1.
    CONFIG_READ = 0
    CONFIG_TEST = 1
    CONFIG_PREFIX = 2
    CONFIG_SET = 3
    CONFIG_FORCE = 4
    CONFIG_BYTES = 1024

    # Class 2.
    MASK_READ = 0
    MASK_EDIT = 1
    DIRECTIVE_NOP = 0
    DIRECTIVE_ADD = 1
    DIRECTIVE_DELETE = 2
    MERROR_UNSPECIFIED = 1
    MERROR_DIRECTIVE = 2
    MERROR_FULL = 3

    # Class 3.
    RESERVE_READ = 0
    RESERVE_SET = 1
    RESERVE_FORCE = 2


cdef packed struct AoeHeader:
    uint8_t dst[6]
    uint8_t src[6]
    uint16_t ethertype
    uint8_t version_flags
    uint8_t error
    uint16_t shelf
    uint8_t slot
    uint8_t command
    uint8_t tag[4]


cdef packed struct AtaHeader:
    AoeHeader aoe
    uint8_t aflags
    uint8_t error_feature
    uint8_t count
    uint8_t command_status
    uint8_t lba[6]
    uint8_t reserved[2]


cdef packed struct ConfigHeader:
    AoeHeader aoe
    uint16_t buffers
    uint16_t firmware
    uint8_t sectors
    uint8_t version_command
    uint16_t size


cdef packed struct MaskHeader:
    AoeHeader aoe
    uint8_t reserved
    uint8_t command
    uint8_t error
    uint8_t count


cdef packed struct Directive:
    uint8_t reserved
    uint8_t command
    uint8_t mac[6]


cdef packed struct ReserveHeader:
    AoeHeader aoe
    uint8_t command
    uint8_t count


cdef inline uint64_t mac_key(const uint8_t *mac) noexcept nogil:
    """The 48 bits of ``mac`` as a number."""
    return (
        (<uint64_t>mac[0] << 40) | (<uint64_t>mac[1] << 32) | (<uint64_t>mac[2] << 24)
        | (<uint64_t>mac[3] << 16) | (<uint64_t>mac[4] << 8) | <uint64_t>mac[5]
    )


cdef inline bint same_mac(const uint8_t *a, const uint8_t *b) noexcept nogil:
    return memcmp(a, b, MAC_BYTES) == 0


cdef inline bint is_broadcast(const uint8_t *mac) noexcept nogil:
    return (mac[0] & mac[1] & mac[2] & mac[3] & mac[4] & mac[5]) == 0xFF


cdef inline uint64_t ata_lba(const AtaHeader *ata) noexcept nogil:
    """The sector number a request names: 48 bits with the E flag or an EXT opcode, else 28.

    In 28 bits the high nibble of lba3 holds the drive/head bits of the old task file.
    """
    cdef uint64_t low = (
        <uint64_t>ata.lba[0] | (<uint64_t>ata.lba[1] << 8)
        | (<uint64_t>ata.lba[2] << 16) | (<uint64_t>ata.lba[3] << 24)
    )
    if (
        ata.aflags & AFLAG_LBA48
        or ata.command_status == ATA_READ_EXT or ata.command_status == ATA_WRITE_EXT
    ):
        return low | (<uint64_t>ata.lba[4] << 32) | (<uint64_t>ata.lba[5] << 40)
    return low & 0x0FFFFFFF


cdef inline bint has_device_bits(const AtaHeader *ata, uint64_t sector) noexcept nogil:
    """An EXT opcode without the E flag whose address looks like 28 bits below 0xE, LBA mode."""
    return not ata.aflags & AFLAG_LBA48 and sector >> 28 == DEVICE_BITS


cdef inline uint32_t shortest_request(uint8_t command) noexcept nogil:
    """Bytes that a request of this class must have at least."""
    if command == CLASS_ATA:
        return sizeof(AtaHeader)
    if command == CLASS_CONFIG:
        return sizeof(ConfigHeader)
    if command == CLASS_MASK:
        return sizeof(MaskHeader)
    if command == CLASS_RESERVE:
        return sizeof(ReserveHeader)
    return sizeof(AoeHeader)


cdef inline uint8_t sectors_for_mtu(uint32_t mtu) noexcept nogil:
    """Sectors for each frame to advertise and accept on a link of this MTU; 0: too small.

    Linux reckons (MTU - 36) / 512. 16 and 8 rather than 17 and 9..15: whole pages.
    """
    cdef uint32_t fit = (mtu - 36) // SECTOR if mtu > 36 else 0
    if fit >= 16:
        return 16
    if fit >= 8:
        return 8
    return <uint8_t>fit
