/* NBD over the kernel's own TCP: the fixed newstyle handshake by name, simple replies. Included by
   storm.c, whose clients then have a connection for each disk instead of AoE. */
#ifndef BENCH_STORM_NBD_H
#define BENCH_STORM_NBD_H

#include "ring.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>

enum { NBD_HELLO = 18, NBD_EXPORT = 10, NBD_REPLY = 16, NBD_REQUEST = 28, NBD_PIECE = 1 << 18 };
enum nbd_state { GREETING, NAMING, READY };

struct connection {
    int fd;
    uint32_t client, have, left;  /* bytes of the head that are there; of the data that are missing */
    uint64_t at;                  /* where in the device the next byte of data lies */
    uint32_t bio;
    uint8_t device, state, head[NBD_HELLO];
};

static int poller = -1;
static uint8_t piece[NBD_PIECE];

static inline uint64_t get64(const uint8_t *at)
{
    uint64_t value;
    memcpy(&value, at, 8);
    return be64toh(value);
}

static inline uint8_t *put_be(uint8_t *at, uint64_t value, int bytes)
{
    while (bytes--)
        *at++ = (uint8_t)(value >> (8 * bytes));
    return at;
}

/* All of it: what one client sends at once always fits soon. */
static void send_all(int fd, const uint8_t *data, size_t size)
{
    while (size) {
        ssize_t sent = send(fd, data, size, MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN && errno != EINTR)
            die("NBD connection");
        if (sent < 0) {
            struct pollfd room = {fd, POLLOUT, 0};
            poll(&room, 1, 100);
            continue;
        }
        data += sent;
        size -= (size_t)sent;
    }
}

static void nbd_connect(struct connection *connection, uint32_t server, uint32_t port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port),
                                  .sin_addr = {server}};
    struct epoll_event event = {.events = EPOLLIN, .data = {.ptr = connection}};
    int one = 1;
    if (poller < 0 && (poller = epoll_create1(EPOLL_CLOEXEC)) < 0)
        die("epoll");
    connection->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (connection->fd < 0)
        die("NBD socket");
    setsockopt(connection->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(connection->fd, (struct sockaddr *)&address, sizeof address) && errno != EINPROGRESS)
        die("NBD connect");
    if (epoll_ctl(poller, EPOLL_CTL_ADD, connection->fd, &event))
        die("epoll");
}

/* The greeting is there: ask for an export. */
static void nbd_name(struct connection *connection, const char *name)
{
    uint8_t asks[64], *at = asks;
    at = put_be(at, 3, 4); /* fixed newstyle, no zeroes */
    memcpy(at, "IHAVEOPT", 8);
    at = put_be(at + 8, 1, 4);
    at = put_be(at, strlen(name), 4);
    memcpy(at, name, strlen(name));
    send_all(connection->fd, asks, (size_t)(at - asks) + strlen(name));
}

static void nbd_request(struct connection *connection, int writes, uint32_t bio, uint64_t lba, uint32_t bytes,
                        const uint8_t *data)
{
    uint8_t asks[NBD_REQUEST], *at = put_be(asks, 0x25609513, 4);
    at = put_be(at, 0, 2);
    at = put_be(at, (uint64_t)writes, 2);
    at = put_be(at, bio, 8);
    at = put_be(at, lba * SECTOR, 8);
    put_be(at, bytes, 4);
    send_all(connection->fd, asks, sizeof asks);
    if (writes)
        send_all(connection->fd, data, bytes);
}

#endif
