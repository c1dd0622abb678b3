"""Images over the control socket: what ``pxed.library`` does, while clients boot and run."""

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any, TypeVar

from pxed.body import Body
from pxed.choice import in_use
from pxed.contents import Report
from pxed.control import Call, Json, NotThere
from pxed.describe import describe, detail, finding_line, source_of
from pxed.errors import PxedError, UsageError
from pxed.images import STABLE, Image
from pxed.library import Finding
from pxed.manage.core import Core

T = TypeVar("T")

_TELL = 0.2  # seconds between two lines of progress


class ManageImages:
    """Every method is a route."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._changing = asyncio.Lock()

    async def list(self, _call: Call) -> Json:
        def work() -> tuple[list[Image], list[str]]:
            return library.all()

        library = self._core.library
        good, bad = await self._core.blocking(work)
        return {
            "images": [describe(library, each, self._core.choice.uses(each)) for each in good],
            "damaged": bad,
        }

    async def show(self, call: Call) -> Json:
        image = self._find(call)
        return describe(self._core.library, image, self._core.choice.uses(image)) | detail(image)

    async def add(self, call: Call) -> AsyncGenerator[Json, None]:
        source = source_of(call.body)
        library = self._core.library
        async for line in _told(
            self._core, lambda report: library.add(source, report), lambda image: self._added(image)
        ):
            yield line

    async def verify(self, call: Call) -> AsyncGenerator[Json, None]:
        image = self._find(call)
        library = self._core.library

        def done(findings: list[Finding]) -> Json:
            return {"findings": [finding_line(finding) for finding in findings]}

        async for line in _told(self._core, lambda report: library.verify(image, report), done):
            yield line

    async def use(self, call: Call) -> Json:
        body = Body(call.body, "image", "channel")
        spec, channel = body.text("image"), body.text("channel", STABLE)
        library = self._core.library
        name = spec.partition("@")[0]
        image, before = await self._change(name, lambda: library.use(spec, channel))
        return self._switched(image, before, channel)

    async def rollback(self, call: Call) -> Json:
        body = Body(call.body, "name", "channel")
        name, channel = body.text("name"), body.text("channel", STABLE)
        library = self._core.library
        image, before = await self._change(name, lambda: library.rollback(name, channel))
        return self._switched(image, before, channel)

    async def drop_channel(self, call: Call) -> Json:
        body = Body(call.body, "name", "channel")
        name, channel = body.text("name"), body.text("channel")
        await self._change(name, lambda: self._core.library.drop_channel(name, channel))
        return {"text": f"{name} has no channel {channel} any more"}

    async def _change(self, name: str, change: Callable[[], T]) -> T:
        """Move a channel of this image; if the server cannot serve what it then means, back."""
        core = self._core
        async with self._changing:
            past = await core.blocking(core.library.channels, name)
            done = await core.blocking(change)
            try:
                core.use_images()
            except PxedError:
                await core.blocking(core.library.restore, name, past)
                raise
            return done

    async def remove(self, call: Call) -> Json:
        core = self._core
        image = self._find(call)
        if reason := core.choice.uses(image):
            raise UsageError(f"{image} is in use: {reason}")
        await core.blocking(core.library.remove, image, core.choice.uses)
        core.exports.close_image(image)
        seats = "; what seats wrote with it goes at their next start"
        return {"text": f"{image} is removed" + seats * core.config.midlayer.reclaim}

    def _find(self, call: Call) -> Image:
        try:
            return self._core.library.find(f"{call.path['name']}@{call.path['version']}")
        except UsageError as error:
            raise NotThere(str(error)) from None

    def _added(self, image: Image) -> Json:
        """``warning``: clients get what they got before, and what is to be done about that."""
        try:
            self._core.use_images()
            warning = ""
        except PxedError as error:
            warning = str(error)
        shown = describe(self._core.library, image, self._core.choice.uses(image))
        return {"image": shown, "warning": warning}

    def _switched(self, image: Image, before: str, channel: str) -> Json:
        """What changed for whom, now that ``channel`` points to this version."""
        core = self._core
        classes = [
            name for name, each in core.choice.images.items() if each.directory == image.directory
        ]
        still = sum(
            in_use(c) and c.image.startswith(f"{image.name}@") and c.image != str(image)
            for c in core.clients
        )
        return {"image": str(image), "before": before, "channel": channel, "classes": classes,
                "pinned": still, "stuck": core.choice.stuck()}  # fmt: skip


async def _told(
    core: Core, work: Callable[[Report], T], done: Callable[[T], Json]
) -> AsyncGenerator[Json, None]:
    """Do ``work`` in a thread: its progress line by line, then what ``done`` makes of its result.

    Whoever stops listening stops the work.
    """
    loop = asyncio.get_running_loop()
    news: asyncio.Queue[Json | None] = asyncio.Queue()
    stop = threading.Event()
    last = 0.0

    def report(what: str, so_far: int, total: int) -> None:
        nonlocal last
        if stop.is_set():
            raise UsageError("interrupted")
        if time.monotonic() - last >= _TELL:
            last = time.monotonic()
            line = {"progress": what, "done": so_far, "total": total}
            loop.call_soon_threadsafe(news.put_nowait, line)

    def end(_future: Any) -> None:
        news.put_nowait(None)

    future = asyncio.ensure_future(core.blocking(work, report))
    future.add_done_callback(end)
    try:
        while (line := await news.get()) is not None:
            yield line
        yield done(future.result())
    finally:
        stop.set()
