"""The control interface as an OpenAPI 3.1 document: what ``GET /v1/openapi.json`` hands out."""

from typing import Any

Json = dict[str, Any]

_TEXT: Json = {"type": "string"}
_SWITCH: Json = {"type": "boolean"}
_SELECT: Json = {
    "type": "array",
    "items": _TEXT,
    "description": "MAC addresses, names, @GROUP, patterns with * and ?, or all",
}
_ONE: Json = {"type": "string", "description": "what means exactly one client"}
_CHANNEL: Json = {"type": "string", "default": "stable"}
_PATH: Json = {"type": "string", "description": "an absolute path on the server"}


def _get(summary: str, schema: Json | None = None, *, lines: bool = False, **query: Json) -> Json:
    said = _answers(summary, schema, lines)
    if query:
        said["parameters"] = [
            {"name": name, "in": "query", "schema": each} for name, each in query.items()
        ]
    return said


def _post(
    summary: str, body: Json | None = None, required: tuple[str, ...] = (), *, lines: bool = False
) -> Json:
    said = _answers(summary, None, lines)
    if body is not None:
        schema = {"type": "object", "properties": body, "additionalProperties": False}
        if required:
            schema["required"] = list(required)
        said["requestBody"] = {"content": {"application/json": {"schema": schema}}}
    return said


def _answers(summary: str, schema: Json | None, lines: bool) -> Json:
    kind = "application/x-ndjson" if lines else "application/json"
    error = {"$ref": "#/components/responses/Error"}
    return {
        "summary": summary,
        "responses": {
            "200": {"description": "done", "content": {kind: {"schema": schema or {}}}},
            "400": error,
            "500": error,
        },
    }


def _in_path(said: Json, *names: str) -> Json:
    said["responses"]["404"] = {"$ref": "#/components/responses/Error"}
    said.setdefault("parameters", []).extend(
        {"name": name, "in": "path", "required": True, "schema": _TEXT} for name in names
    )
    return said


_LIST: Json = {"type": "array", "items": {"type": "object"}}

DOCUMENT: Json = {
    "openapi": "3.1.0",
    "info": {
        "title": "pxed control socket",
        "version": "1",
        "description": "HTTP and JSON on the unix socket control.sock in the state directory. "
        "Streams are JSON lines; one with the keys error and status is the last of its stream.",
    },
    "paths": {
        "/v1/openapi.json": {"get": _get("This document")},
        "/v1/status": {"get": _get("The server, its interface and its counters")},
        "/v1/events": {
            "get": _get(
                "The event log, oldest entry first",
                lines=True,
                follow={"enum": ["1"], "description": "go on with what comes"},
                since={"type": "number", "description": "seconds since the epoch"},
            )
        },
        "/v1/clients": {"get": _get("All clients", _LIST)},
        "/v1/clients/{mac}": {
            "get": _in_path(_get("One client and the timeline of its last boot"), "mac")
        },
        "/v1/clients/select": {
            "post": _post("Which clients some words mean", {"select": _SELECT}, ("select",))
        },
        "/v1/clients/name": {
            "post": _post("Name a client", {"client": _ONE, "name": _TEXT}, ("client", "name"))
        },
        "/v1/clients/note": {
            "post": _post("Note something", {"select": _SELECT, "note": _TEXT}, ("select",))
        },
        "/v1/clients/group": {
            "post": _post(
                "Put clients into groups and take them out",
                {
                    "select": _SELECT,
                    "add": {"type": "array", "items": _TEXT},
                    "remove": {"type": "array", "items": _TEXT},
                },
                ("select",),
            )
        },
        "/v1/clients/approve": {
            "post": _post("Let clients boot", {"select": _SELECT}, ("select",))
        },
        "/v1/clients/block": {
            "post": _post(
                "Refuse clients from their next boot on, or at once",
                {"select": _SELECT, "now": _SWITCH},
                ("select",),
            )
        },
        "/v1/clients/reset": {
            "post": _post(
                "Make a new /config at the next boot; the present one is kept as old",
                {"select": _SELECT, "undo": _SWITCH},
                ("select",),
            )
        },
        "/v1/clients/boot": {
            "post": _post(
                "Say what clients boot, for good or once",
                {
                    "select": _SELECT,
                    "order": {
                        "type": "string",
                        "description": "default, diskless, provision, local or "
                        "image=NAME[@VERSION or @CHANNEL]",
                    },
                    "once": _SWITCH,
                },
                ("select", "order"),
            )
        },
        "/v1/clients/forget": {
            "post": _post(
                "Forget clients that are off; their midlayers stay",
                {"select": _SELECT, "force": _SWITCH},
                ("select",),
            )
        },
        "/v1/clients/join": {
            "post": _post(
                "Make addresses further ones of a client, or part them from it",
                {"client": _ONE, "macs": {"type": "array", "items": _TEXT}, "part": _SWITCH},
                ("client", "macs"),
            )
        },
        "/v1/clients/wake": {
            "post": _post("Send wake-on-LAN packets", {"select": _SELECT}, ("select",))
        },
        "/v1/images": {
            "get": _get("All images"),
            "post": _post(
                "Add an image; lines of progress, then the image",
                {
                    "directory": _PATH,
                    "devices": {
                        "type": "object",
                        "properties": {"boot": _PATH, "root": _PATH, "tfm": _PATH},
                    },
                    "name": _TEXT,
                    "version": _TEXT,
                    "class": {"enum": ["x86", "rpi"]},
                    "released": {"type": "string", "format": "date"},
                    "copy": _SWITCH,
                },
                lines=True,
            ),
        },
        "/v1/images/use": {
            "post": _post(
                "Point a channel to a version: booting clients get it",
                {"image": _TEXT, "channel": _CHANNEL},
                ("image",),
            )
        },
        "/v1/images/rollback": {
            "post": _post(
                "Point a channel to the version before",
                {"name": _TEXT, "channel": _CHANNEL},
                ("name",),
            )
        },
        "/v1/images/drop-channel": {
            "post": _post(
                "Forget a channel", {"name": _TEXT, "channel": _TEXT}, ("name", "channel")
            )
        },
        "/v1/images/{name}/{version}": {
            "get": _in_path(_get("One image with its files"), "name", "version"),
            "delete": _in_path(_get("Remove an image that nobody uses"), "name", "version"),
        },
        "/v1/images/{name}/{version}/verify": {
            "post": _in_path(
                _post("Compare with the digests; progress, then findings", lines=True),
                "name",
                "version",
            )
        },
        "/v1/midlayers": {"get": _get("All midlayers, and how much disk is free")},
        "/v1/midlayers/unused": {
            "get": _get(
                "Midlayers of machines unseen for days",
                days={"type": "integer", "default": 90, "minimum": 1},
            )
        },
        "/v1/midlayers/backup": {
            "post": _post(
                "Copy the midlayer of a client that is off to a new file",
                {"client": _ONE, "file": _PATH},
                ("client", "file"),
            )
        },
        "/v1/midlayers/restore": {
            "post": _post(
                "Put a backup back, or the midlayer from before",
                {"client": _ONE, "file": _PATH, "old": _SWITCH},
                ("client",),
            )
        },
        "/v1/midlayers/resize": {
            "post": _post(
                "Give the midlayer of a client that is off another size",
                {"client": _ONE, "size": {"type": "string", "examples": ["1G"]}},
                ("client", "size"),
            )
        },
        "/v1/midlayers/remove": {
            "post": _post(
                "Delete midlayers of clients that are off, or only their old ones",
                {"macs": {"type": "array", "items": _TEXT}, "old": _SWITCH},
                ("macs",),
            )
        },
        "/v1/config/diff": {"get": _get("What the configuration file would change")},
        "/v1/config/reload": {
            "post": _post("Take over the configuration file, all of it or nothing")
        },
        "/v1/doctor/simulate": {
            "post": _post(
                "Boot a client that is not there",
                {"firmware": {"enum": ["bios", "uefi", "ipxe", "http", "rpi"]}},
                ("firmware",),
            )
        },
    },
    "components": {
        "responses": {
            "Error": {
                "description": "400 the request's fault, 404 nothing there, 500 the server's",
                "content": {
                    "application/json": {
                        "schema": {"type": "object", "properties": {"error": _TEXT}}
                    }
                },
            }
        }
    },
}
