"""How the server reads what it was sent: the JSON object of a request, key by key. Pure."""

from pathlib import Path
from typing import Any

from pxed.errors import UsageError

Json = dict[str, Any]


class Body:
    """The JSON object of a request, taken apart key by key; UsageError for what is not meant."""

    def __init__(self, body: Json, *known: str) -> None:
        strange = body.keys() - set(known)
        if strange:
            raise UsageError(f"{min(strange)!r} is not known here: there are {', '.join(known)}")
        self._body = body

    def text(self, key: str, default: str = "") -> str:
        value = self._body.get(key, default)
        if not isinstance(value, str) or "\n" in value or "\0" in value or len(value) > 4096:
            raise UsageError(f"{key}: must be a text of one line")
        return value

    def texts(self, key: str) -> list[str]:
        value = self._body.get(key, [])
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise UsageError(f"{key}: must be a list of texts")
        return value

    def switch(self, key: str) -> bool:
        value = self._body.get(key, False)
        if not isinstance(value, bool):
            raise UsageError(f"{key}: must be true or false")
        return value

    def number(self, key: str, default: int) -> int:
        value = self._body.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool):
            raise UsageError(f"{key}: must be a whole number")
        return value

    def path(self, key: str) -> Path | None:
        """An absolute path; None if it is left out."""
        value = self.text(key)
        if value and not Path(value).is_absolute():
            raise UsageError(f"{key}: {value!r} must be an absolute path")
        return Path(value) if value else None
