"""Frames through ``handle``, with everything about their replies checked: for libFuzzer (main.c).

An input is a frame, or several with MARK between them: one batch. The server that it stands for lets
clients change config strings, masks and reservations, so that all of the code is reached; each
input begins without any, for one that locks everybody out would hide the rest from all that follow.
Compiled by tests/fuzz/build.py against the instrumented modules.
"""

import os
import tempfile

from libc.stdint cimport uint8_t, uint32_t
from libc.stdio cimport fprintf, stderr
from libc.stdlib cimport abort
from libc.string cimport memcmp, memcpy

from aoe_fast.batch cimport BATCH_FRAMES, BODY_BYTES, HEAD_BYTES, Batch, Reply, new_batch
from aoe_fast.store cimport Backing, Export
from aoe_fast.target cimport Target, handle
from aoe_fast.view cimport Table

from aoe_fast.memory import live_blocks
from aoe_fast.store import live_backings


cdef extern from "<string.h>" nogil:
    void *memmem(const void *haystack, size_t size, const void *needle, size_t length)


cdef enum:
    SECTORS = 64
    IMAGES = 2                  # the first of DEVICES: read-only, for all
    DEVICES = 5                 # by slot; the others are the machine's own
    MARK_BYTES = 8

cdef Batch *batch = NULL
cdef Target target = None
cdef uint8_t own[6]
cdef uint8_t owner[6]
cdef uint8_t mark[MARK_BYTES]
cdef uint8_t nothing[SECTORS * 512]
cdef Backing *backings[DEVICES]

ARENA = tempfile.mkdtemp(prefix="pxed-fuzz-", dir="/dev/shm")


def set_up():
    """A default view, and one of a machine with private devices; files in memory."""
    global batch, target
    cdef Export export
    exports = []
    for name, durability in (
        ("boot", None), ("root", None),
        ("config", "durable"), ("report", "durable"), ("scratch", "writeback"),
    ):
        path = os.path.join(ARENA, name)
        with open(path, "wb") as file:
            file.truncate(SECTORS * 512)
        export = Export(path, writable=durability is not None, durability=durability or "durable")
        backings[len(exports)] = export.open_backing()
        exports.append(export)
        os.unlink(path)
    os.rmdir(ARENA)
    target = Target(wire_config=True, wire_reserve=True)
    seen = {(16, slot): export for slot, export in enumerate(exports)}
    target.set_view(None, {at: seen[at] for at in list(seen)[:IMAGES]})
    machine = bytes([2, 0, 0, 0, 0, 0xC1])
    target.set_view(machine, seen)
    memcpy(owner, <const char *>machine, 6)
    between = b"\xa5\x5aNEXT\x5a\xa5"
    memcpy(mark, <const char *>between, MARK_BYTES)
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


cdef void check(const Reply *reply, const uint8_t *data) noexcept nogil:
    """Abort if the reply to ``data`` breaks a rule."""
    cdef const uint8_t *image
    cdef uint32_t i
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
    if reply.head[18] >= IMAGES and memcmp(data + 6, owner, 6):
        fail(b"an answer of somebody else's device")
    if reply.image != NULL:
        for i in range(IMAGES if memcmp(data + 6, owner, 6) else DEVICES):
            if reply.image == backings[i]:
                break
        else:
            fail(b"somebody else's image")
    if reply.size and reply.image != NULL:
        image = reply.image.data
        if reply.data < image or reply.data + reply.size > image + reply.image.sectors * 512:
            fail(b"data beyond the image")
    elif reply.size > BODY_BYTES:
        fail(b"data beyond its place")


cdef api int fuzz_one(const uint8_t *data, size_t size) noexcept nogil:
    """Handle a batch of frames; aborts if a reply breaks a rule. The sanitizers see to the rest."""
    cdef const uint8_t *end = data + size
    cdef const uint8_t *stop
    cdef uint32_t frames
    cdef uint32_t count
    cdef uint32_t before
    cdef uint32_t i
    for i in range(DEVICES):
        backings[i].allowed.count = 0
        backings[i].holders.count = 0
        backings[i].config_bytes = 0
    batch.count = 0
    batch.bodies = 0
    batch.guarded = 0
    for frames in range(BATCH_FRAMES):
        stop = <const uint8_t *>memmem(data, <size_t>(end - data), mark, MARK_BYTES)
        if stop == NULL:
            stop = end
        before = batch.count
        count = handle(batch, data, <uint32_t>(stop - data))
        if before + count != batch.count or count > DEVICES:
            fail(b"more replies than devices")
        if count and (stop - data < 24 or data[14] & 8 or data[6] & 1):
            fail(b"an answer where silence is due")
        for i in range(before, batch.count):
            check(&batch.replies[i], data)
        if stop == end:
            break
        data = stop + MARK_BYTES
    for i in range(IMAGES):
        if memcmp(backings[i].data, nothing, SECTORS * 512):
            fail(b"an image was written")
    return 0


def finished():
    """What is left when all is let go: blocks and backings that somebody forgot."""
    return live_blocks(), live_backings()
