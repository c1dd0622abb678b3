"""Every route of the control socket that changes something or looks further than a listing."""

from pxed.body import Body
from pxed.control import Call, Json, Route, Stream
from pxed.errors import UsageError
from pxed.manage.clients import ManageClients
from pxed.manage.config import ManageConfig
from pxed.manage.core import Core
from pxed.manage.images import ManageImages
from pxed.manage.midlayers import ManageMidlayers
from pxed.probe import FIRMWARE


def routes(core: Core) -> list[Route | Stream]:
    """The routes, in the order of ``pxed.openapi``, which describes each."""
    clients, images = ManageClients(core), ManageImages(core)
    midlayers, config = ManageMidlayers(core), ManageConfig(core)

    async def simulate(call: Call) -> Json:
        firmware = Body(call.body, "firmware").text("firmware")
        if firmware not in FIRMWARE:
            raise UsageError(f"firmware: must be one of {', '.join(FIRMWARE)}")
        steps = core.probe().run(firmware)
        return {"steps": [{"step": s.step, "good": s.good, "text": s.text} for s in steps]}

    return [
        Route("POST", "/v1/clients/select", clients.select),
        Route("POST", "/v1/clients/name", clients.name),
        Route("POST", "/v1/clients/note", clients.note),
        Route("POST", "/v1/clients/group", clients.group),
        Route("POST", "/v1/clients/approve", clients.approve),
        Route("POST", "/v1/clients/block", clients.block),
        Route("POST", "/v1/clients/reset", clients.reset),
        Route("POST", "/v1/clients/boot", clients.boot),
        Route("POST", "/v1/clients/forget", clients.forget),
        Route("POST", "/v1/clients/join", clients.join),
        Route("POST", "/v1/clients/wake", clients.wake),
        Route("GET", "/v1/images", images.list),
        Stream("POST", "/v1/images", images.add),
        Route("POST", "/v1/images/use", images.use),
        Route("POST", "/v1/images/rollback", images.rollback),
        Route("POST", "/v1/images/drop-channel", images.drop_channel),
        Route("GET", "/v1/images/{name}/{version}", images.show),
        Stream("POST", "/v1/images/{name}/{version}/verify", images.verify),
        Route("DELETE", "/v1/images/{name}/{version}", images.remove),
        Route("GET", "/v1/midlayers", midlayers.list),
        Route("GET", "/v1/midlayers/unused", midlayers.unused),
        Route("POST", "/v1/midlayers/backup", midlayers.backup),
        Route("POST", "/v1/midlayers/restore", midlayers.restore),
        Route("POST", "/v1/midlayers/resize", midlayers.resize),
        Route("POST", "/v1/midlayers/remove", midlayers.remove),
        Route("GET", "/v1/config/diff", config.diff),
        Route("POST", "/v1/config/reload", config.reload),
        Route("POST", "/v1/doctor/simulate", simulate),
    ]
