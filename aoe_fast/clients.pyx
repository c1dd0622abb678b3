"""What is known of each client: one table for each worker, which alone writes it.

Eight-way sets with the longest silent one replaced: 4,096 clients for each worker, a fixed cost,
and nothing that strangers with invented addresses can fill for good.
"""

from libc.string cimport memset


cdef inline uint64_t first_way(uint64_t key) noexcept nogil:
    return ((key * <uint64_t>0x9E3779B97F4A7C15) >> 32) % SETS * WAYS


cdef Client *find_client(Clients *clients, uint64_t key) noexcept nogil:
    """The client with this MAC, or NULL."""
    cdef uint64_t at
    cdef int _way
    if key == clients.last_key:
        return clients.last
    at = first_way(key)
    for _way in range(WAYS):
        if clients.keys[at] == key:
            clients.last_key = key
            clients.last = &clients.rows[at]
            return clients.last
        at += 1
    return NULL


cdef Client *enter_client(Clients *clients, uint64_t key) noexcept nogil:
    """The client with this MAC; a new one takes the place that was silent longest."""
    cdef Client *client = find_client(clients, key)
    cdef uint64_t at
    cdef uint64_t best
    cdef int _way
    if client != NULL:
        return client
    at = best = first_way(key)
    for _way in range(WAYS):
        if clients.rows[at].last_ns < clients.rows[best].last_ns:
            best = at
        at += 1
    client = &clients.rows[best]
    memset(client, 0, sizeof(Client))
    client.mac = key
    clients.keys[best] = key
    clients.last_key = key
    clients.last = client
    return client
