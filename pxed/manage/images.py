"""Images over the control socket: what ``pxed.library`` does, while clients boot and run."""

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any, TypeVar

from pxed.body import Body
from pxed.choice import in_use
from pxed.control import Call, Json, NotThere
from pxed.describe import describe, detail, finding_line, source_of
from pxed.errors import UsageError
from pxed.images import STABLE, Image
from pxed.library import Finding, Report
from pxed.manage.core import Core

T = TypeVar("T")

_TELL = 0.2  # seconds between two lines of progress


class ManageImages:
    """Every method is a route."""

    def __init__(self, core: Core) -> None:
        self._core = core

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
        channel = body.text("channel", STABLE)
        image, before = self._core.library.use(body.text("image"), channel)
        return self._switched(image, before, channel)

    async def rollback(self, call: Call) -> Json:
        body = Body(call.body, "name", "channel")
        channel = body.text("channel", STABLE)
        image, before = self._core.library.rollback(body.text("name"), channel)
        return self._switched(image, before, channel)

    async def drop_channel(self, call: Call) -> Json:
        body = Body(call.body, "name", "channel")
        self._core.library.drop_channel(body.text("name"), body.text("channel"))
        self._core.use_images()
        return {"text": f"{body.text('name')} has no channel {body.text('channel')} any more"}

    async def remove(self, call: Call) -> Json:
        core = self._core
        image = self._find(call)
        if reason := core.choice.uses(image):
            raise UsageError(f"{image} is in use: {reason}")
        await core.blocking(core.library.remove, image, core.choice.uses)
        core.exports.close_image(image)
        return {"text": f"{image} is removed"}

    def _find(self, call: Call) -> Image:
        try:
            return self._core.library.find(f"{call.path['name']}@{call.path['version']}")
        except UsageError as error:
            raise NotThere(str(error)) from None

    def _added(self, image: Image) -> Json:
        self._core.use_images()
        return {"image": describe(self._core.library, image, self._core.choice.uses(image))}

    def _switched(self, image: Image, before: str, channel: str) -> Json:
        """What changed for whom, now that ``channel`` points to this version."""
        core = self._core
        chosen = core.use_images()
        classes = [name for name, each in chosen.items() if each.directory == image.directory]
        still = sum(
            in_use(c) and c.image.startswith(f"{image.name}@") and c.image != str(image)
            for c in core.clients
        )
        return {"image": str(image), "before": before, "channel": channel, "classes": classes,
                "pinned": still}  # fmt: skip


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
