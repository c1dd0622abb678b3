"""One frame through ``handle``, with everything about its replies checked: for libFuzzer (main.c).

The server that it stands for lets clients change config strings, masks and reservations, so that all
of the code is reached. Compiled by tests/fuzz/build.py against the instrumented modules.
"""

import os
import tempfile

from libc.stdint cimport uint8_t, uint32_t
from libc.stdio cimport fprintf, stderr
from libc.stdlib cimport abort
from libc.string cimport memcmp, memcpy

from aoe_fast.batch cimport BODY_BYTES, HEAD_BYTES, Batch, Reply, new_batch
from aoe_fast.target cimport Target, handle
from aoe_fast.view cimport Table

from aoe_fast.memory import live_blocks
from aoe_fast.store import Export, live_backings

cdef Batch *batch = NULL
cdef Target target = None
cdef uint8_t own[6]

SECTORS = 64
ARENA = tempfile.mkdtemp(prefix="pxed-fuzz-", dir="/dev/shm")


def set_up():
    """A default view, and one of a machine with private devices; files in memory."""
    global batch, target
    exports = []
    for name, writable in (("boot", False), ("root", False), ("config", True), ("report", True)):
        path = os.path.join(ARENA, name)
        with open(path, "wb") as file:
            file.truncate(SECTORS * 512)
        exports.append(Export(path, writable=writable, durability="durable"))
        os.unlink(path)
    os.rmdir(ARENA)
    target = Target(wire_config=True, wire_reserve=True)
    boot, root, config, report = exports
    target.set_view(None, {(16, 0): boot, (16, 1): root})
    target.set_view(bytes([2, 0, 0, 0, 0, 0xC1]),
                    {(16, 0): boot, (16, 1): root, (16, 3): config, (16, 4): report})
    batch = new_batch()
    target.prepare(batch, 9000)
    server = bytes([2, 0, 0, 0, 0, 1])
    memcpy(own, <const char *>server, 6)
    memcpy(batch.mac, own, 6)
    batch.table = <const Table *>target.views.table
    batch.counters = &target._counters


cdef void fail(const char *what) noexcept nogil:
    fprintf(stderr, b"harness: %s\n", what)
    abort()


cdef api int fuzz_one(const uint8_t *data, size_t size) noexcept nogil:
    """Handle one frame; aborts if a reply breaks a rule. The sanitizers see to the rest."""
    cdef uint32_t count
    cdef uint32_t i
    cdef Reply *reply
    cdef const uint8_t *image
    batch.count = 0
    batch.bodies = 0
    count = handle(batch, data, <uint32_t>size)
    if count != batch.count or count > 4:
        fail(b"more replies than devices")
    if count and (size < 24 or data[14] & 8 or data[6] & 1):
        fail(b"an answer where silence is due")
    for i in range(count):
        reply = &batch.replies[i]
        if reply.head_size < 60 and reply.head_size + reply.size < 60:
            fail(b"a reply shorter than a frame")
        if reply.head_size > HEAD_BYTES:
            fail(b"a header beyond its place")
        if reply.head_size + reply.size > 14 + 9000:
            fail(b"a reply longer than the MTU")
        if memcmp(reply.head, data + 6, 6) or memcmp(reply.head + 6, own, 6):
            fail(b"a reply to or from somebody else")
        if memcmp(reply.head + 20, data + 20, 4) or not reply.head[14] & 8:
            fail(b"another tag, or no reply flag")
        if reply.size and reply.image != NULL:
            image = reply.image.data
            if reply.data < image or reply.data + reply.size > image + reply.image.sectors * 512:
                fail(b"data beyond the image")
        elif reply.size > BODY_BYTES:
            fail(b"data beyond its place")
    return 0


def finished():
    """What is left when all is let go: blocks and backings that somebody forgot."""
    return live_blocks(), live_backings()
