"""How packets of a transfer leave: its connected socket, windows in one call, and what may fail."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from .transfer cimport Machine, ROOM


cdef extern from "<sys/epoll.h>" nogil:
    union epoll_data_t:
        void *ptr
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epoll, int what, int fd, epoll_event *event)
    int epoll_wait(int epoll, epoll_event *events, int count, int timeout_ms)
    enum:
        EPOLLIN
        EPOLLOUT
        EPOLL_CLOEXEC
        EPOLL_CTL_ADD
        EPOLL_CTL_DEL
        EPOLL_CTL_MOD


# What all sends of one thread share.
cdef struct Outlet:
    int epoll                   # where a socket without room is waited for
    bint segmenting             # windows leave in one call; off once the kernel could not
    uint64_t packets
    uint64_t send_errors
    uint8_t room[ROOM]


cdef void send_blocks(Outlet *out, Machine *machine, int64_t now) noexcept nogil
cdef bint send_one(
    Outlet *out, Machine *machine, const uint8_t *data, size_t size, int64_t now
) noexcept nogil
cdef int watch(Outlet *out, Machine *machine, uint32_t events, int what) noexcept nogil
