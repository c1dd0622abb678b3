"""One file on its way to one TFTP client: the state machine, without socket, clock or lock."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t


cdef enum:
    LONGEST_WINDOW = 64         # RFC 7440 allows more; this is what anybody asks for
    LONGEST_BLOCK = 65464       # RFC 2348
    # As much as one datagram, or one call that the kernel cuts into datagrams, can hold.
    ROOM = 65507
    LONGEST_QUESTION = 512      # RFC 2347: a request fits this


# What a packet or the timer asks of whoever has the socket.
cdef enum Deed:
    NOTHING
    SEND_OPENING
    SEND_BLOCKS                 # lay_out until ``sent`` is ``goal``
    SAY_ILLEGAL
    ASK                         # a new request: ``words``


# How a transfer ended; RUNNING while it has not.
cdef enum End:
    RUNNING
    COMPLETE                    # every block acknowledged
    UNCONFIRMED                 # every block sent, the last acknowledgement never came
    SILENT                      # no answer, after all retries
    REFUSED                     # the client's ERROR packet: ``code``, ``words``
    GONE                        # the client's port or host is not there: ``code`` is the errno
    SHORT                       # the file became shorter, or was changed
    UNREADABLE                  # ``code`` is the errno
    STOPPED                     # by the one who started it


cdef struct Machine:
    uint64_t size
    uint64_t last               # number of the last block, which is a short or an empty one
    uint64_t acked
    uint64_t sent               # blocks of this window that have left
    uint64_t goal               # blocks of this window
    uint32_t blksize
    uint32_t window
    int64_t wait                # ns until the first repetition
    int64_t patience            # ns until the next
    int64_t deadline            # 0: none yet
    int64_t began
    int64_t ended
    uint32_t tries
    uint32_t repeats            # windows and openings sent again
    bint opened                 # blocks go out: there is no OACK, or it was acknowledged
    bint answered               # by any acknowledgement
    bint asks                   # a request that comes on this socket is the owner's (ASK)
    int end
    int shown                   # ``end`` as its owner may see it
    int code
    uint32_t opening_size       # 0: no OACK
    const uint8_t *opening
    const uint8_t *content      # NULL: the file ``fd``
    int fd
    int64_t changed             # the file's mtime at the start, ns
    uint32_t words_size
    char words[512]
    # The mover's.
    void *owner
    Machine *next               # in the mover's list
    Machine *previous
    Machine *next_order         # in its in-tray
    Machine *next_news          # in its out-tray
    int socket
    int orders
    bint ordered
    bint news
    bint blocked                # by a full socket buffer


cdef Deed machine_start(Machine *machine, int64_t now) noexcept nogil
cdef Deed machine_receive(
    Machine *machine, const uint8_t *data, size_t size, int64_t now
) noexcept nogil
cdef Deed machine_expire(Machine *machine, int64_t now) noexcept nogil
cdef void machine_end(Machine *machine, End how, int code, int64_t now) noexcept nogil
cdef size_t lay_out(
    Machine *machine, uint8_t *into, int64_t now, uint32_t *blocks
) noexcept nogil
cdef size_t say(uint8_t *into, int code, const char *text) noexcept nogil


cdef class Transfer:
    cdef Machine machine
    cdef readonly object source
    cdef bytes _opening
    cdef list _packets(self, Deed deed, int64_t now)
