"""How packets of a transfer leave: its connected socket, windows in one call, and what may fail.

The kernel cuts a window into datagrams (UDP_SEGMENT) where it can. Bytes are read into the packets
where they are sent from (preadv), so a file that shrinks is a short read and no signal, and a
transfer costs no memory but its own record.
"""

from libc.errno cimport EAGAIN, ECONNREFUSED, EINVAL, EIO, EMSGSIZE, EOPNOTSUPP, errno
from libc.string cimport memset

from .transfer cimport GONE, lay_out, machine_end


cdef extern from "<sys/socket.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len
    struct msghdr:
        iovec *msg_iov
        size_t msg_iovlen
        void *msg_control
        size_t msg_controllen
    struct cmsghdr:
        size_t cmsg_len
        int cmsg_level
        int cmsg_type
    ssize_t sendmsg(int fd, const msghdr *message, int flags)
    ssize_t send(int fd, const void *data, size_t size, int flags)
    size_t CMSG_LEN(size_t size)
    enum:
        MSG_DONTWAIT
        MSG_NOSIGNAL


cdef extern from "<netinet/in.h>" nogil:
    enum:
        IPPROTO_UDP


cdef enum:
    UDP_SEGMENT = 103           # <linux/udp.h>


# A control message with one uint16, as the kernel lays it out.
cdef struct Segment:
    cmsghdr head
    uint16_t size


cdef void send_blocks(Outlet *out, Machine *machine, int64_t now) noexcept nogil:
    """The rest of the window, as far as the socket's buffer takes it."""
    cdef uint32_t blocks = 0
    cdef size_t size
    if machine.blocked:
        return  # it goes on from ``sent`` when there is room
    while machine.sent < machine.goal:
        size = lay_out(machine, out.room, now, &blocks)
        if blocks == 0:
            send_one(out, machine, out.room, size, now)
            return
        if blocks == 1:
            if not send_one(out, machine, out.room, size, now):
                return
            machine.sent += 1
        elif not send_many(out, machine, size, blocks, now):
            return


cdef bint send_one(
    Outlet *out, Machine *machine, const uint8_t *data, size_t size, int64_t now
) noexcept nogil:
    """False: not now (``blocked``), or the client is gone. Other errors are the timer's to mend."""
    if send(machine.socket, data, size, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0:
        out.packets += 1
        return True
    return not failed(out, machine, now)


cdef bint send_many(
    Outlet *out, Machine *machine, size_t size, uint32_t blocks, int64_t now
) noexcept nogil:
    """Blocks of one size, the last maybe shorter, in one call or one by one; False as above."""
    cdef Segment segment
    cdef iovec part
    cdef msghdr message
    cdef uint32_t step = machine.blksize + 4
    cdef size_t at = 0
    if out.segmenting:
        memset(&message, 0, sizeof(message))
        memset(&segment, 0, sizeof(segment))
        segment.head.cmsg_len = CMSG_LEN(sizeof(uint16_t))
        segment.head.cmsg_level = IPPROTO_UDP
        segment.head.cmsg_type = UDP_SEGMENT
        segment.size = <uint16_t>step
        part.iov_base = out.room
        part.iov_len = size
        message.msg_iov = &part
        message.msg_iovlen = 1
        message.msg_control = &segment
        message.msg_controllen = sizeof(segment)
        if sendmsg(machine.socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0:
            out.packets += blocks
            machine.sent += blocks
            return True
        if errno not in (EINVAL, EIO, EOPNOTSUPP, EMSGSIZE):
            if failed(out, machine, now):
                return False
            machine.sent += blocks
            return True
        # This kernel or interface cannot: one call for each from now on.
        out.segmenting = False
    while at < size:
        if not send_one(out, machine, out.room + at, min(<size_t>step, size - at), now):
            return False
        machine.sent += 1
        at += step
    return True


cdef bint failed(Outlet *out, Machine *machine, int64_t now) noexcept nogil:
    """A send that did not work; True if what follows it should not be tried now either."""
    if errno == EAGAIN:
        machine.blocked = machine.opened
        if machine.blocked:
            watch(out, machine, EPOLLIN | EPOLLOUT, EPOLL_CTL_MOD)
        return True
    out.send_errors += 1
    if errno == ECONNREFUSED:
        machine_end(machine, GONE, errno, now)
        return True
    return False  # link down, out of buffers: as if it were lost


cdef int watch(Outlet *out, Machine *machine, uint32_t events, int what) noexcept nogil:
    """Have epoll tell of ``events`` on its socket (``what``: add or change); 0, or -1 and errno."""
    cdef epoll_event event
    memset(&event, 0, sizeof(event))
    event.events = events
    event.data.ptr = machine
    return epoll_ctl(out.epoll, what, machine.socket, &event)
