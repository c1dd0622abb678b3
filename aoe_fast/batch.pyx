"""One batch of frames: the replies, their data, and what all the classes do with them."""

from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from .wire cimport ATA_UNC, AoeHeader, AtaHeader, FLAG_ERROR, SHORTEST_REPLY, STATUS_FAILED


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
    reply.late = 0
    reply.head_size = SHORTEST_REPLY


cdef void fail_medium(Batch *batch, Reply *reply) noexcept nogil:
    """The disk refused: the ATA error that says so, counted for the server, the row, the client."""
    fail_ata(reply, ATA_UNC)
    batch.counters.ata_errors += 1
    if reply.row != NULL:
        aoe_add64(&reply.row.errors, 1)
        aoe_add64(&reply.row.errors_unc, 1)
    if reply.client != NULL:
        aoe_add64(&reply.client.errors_unc, 1)


cdef uint8_t *take_body(Batch *batch) noexcept nogil:
    """BODY_BYTES of zeroes for one reply's data."""
    cdef uint8_t *body = batch.body + <size_t>batch.bodies * BODY_BYTES
    batch.bodies += 1
    memset(body, 0, BODY_BYTES)
    return body


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
