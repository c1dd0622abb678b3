"""When a worker waits a moment for a fuller batch.

What a batch costs beside its frames (two system calls, the clocks, cold lines) is half a frame's
work: of batches of four frames it is a tenth. And a server that is a little faster than its clients
gets no larger ones, as it is there for each new frame. So it looks on, as it does when nothing has
come, until a batch is nearly full, but only where that is known to pay: a client that waits for
its four answers sends nothing meanwhile. A pause that brought too little, or all that there was, is
followed by 1, 3, 7 ... 1023 batches without one.
"""

from .batch cimport monotonic
from .ring cimport ring_holds


cdef extern from "atomics.h" nogil:
    void aoe_relax()


cdef enum:
    # A client with one request outstanding is never kept waiting.
    FEW = 2
    FULL = 24
    # Longer than a client takes for the next request while it has replies to work on.
    GAP_NS = 10000
    MOST_SKIPPED = 1023
    # Seldom enough to leave the ring's cache line to the kernel that fills it.
    PAUSES = 10


cdef bint pause_is_worth(const Pauses *pauses, const RingState *ring) noexcept nogil:
    """Whether requests are there, but too few. While none are tried no more than that is read."""
    return pauses.skip == 0 and ring_holds(ring, FEW) and not ring_holds(ring, FULL)


cdef bint pause_for_more(
    Pauses *pauses, const RingState *ring, int64_t now, int64_t most
) noexcept nogil:
    """Look on. True: FULL requests are there; False: none for GAP_NS, or ``most`` ns are over."""
    cdef uint32_t seen = FEW
    cdef int64_t until = now + most
    cdef int64_t gap = now + GAP_NS
    cdef int _pause
    while seen < FULL:
        if ring_holds(ring, seen + 1):
            seen += 1
            gap = now + GAP_NS
            continue
        now = monotonic()
        if now > until or now > gap:
            pause_failed(pauses)
            return False
        for _pause in range(PAUSES):
            aoe_relax()
    pause_paid(pauses)
    return True


cdef void pause_paid(Pauses *pauses) noexcept nogil:
    # Twice, with no look between that found nothing.
    if pauses.paid:
        pauses.step = 0
    pauses.paid = True


cdef void pause_failed(Pauses *pauses) noexcept nogil:
    pauses.paid = False
    pauses.step = min(<uint32_t>MOST_SKIPPED, 2 * pauses.step + 1)
    pauses.skip = pauses.step


def tried(outcomes, batches):
    """Which of so many batches are paused before, the first being 0; for tests.

    outcomes: of one pause after the other, "full", "few" (it was given up) or "all" (the batch
    became full, then nothing came); the last one is that of all further ones.
    """
    cdef Pauses pauses
    pauses.skip = pauses.step = 0
    pauses.paid = False
    found = []
    outcome = ""
    for batch in range(batches):
        if pauses.skip == 0:
            outcome = outcomes[min(len(found), len(outcomes) - 1)]
            found.append(batch)
            if outcome == "few":
                pause_failed(&pauses)
            else:
                pause_paid(&pauses)
        pauses_batch(&pauses)
        if outcome == "all":
            pauses_idle(&pauses)
    return found
