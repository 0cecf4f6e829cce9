"""The request body: bytes to an endpoint's validated struct, or a 400 that names the field at fault.

Invariant: only fields that the endpoint's struct declares pass, at any depth; a client's `lora`, `id_slot` or
`cache_prompt` never gets as far as an Op. Source: RFC 8259; the wording of msgspec's validation errors.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from gristmill.core.errors import UnknownField, UsageError, did_you_mean
from gristmill.ports.task import Endpoint

_UNKNOWN = re.compile(r"Object contains unknown field `(.*?)`( - at `.*`)?", re.DOTALL)
_REQUIRED = re.compile(r"Object missing required field `(\w+)`( - at `.*`)?")
_AT = re.compile(r" - at `(.*)`$", re.DOTALL)
_SHOWN_CHARS = 60


class PaidEndpoint:
    """A task's endpoint ready to serve: its task's name, its decoder and its meters."""

    __slots__ = ("_decoder", "endpoint", "has_output", "path", "task")

    def __init__(self, task: str, endpoint: Endpoint) -> None:
        self.task = task
        self.endpoint = endpoint
        self.path = endpoint.path
        self.has_output = "output_tokens" in endpoint.meters
        self._decoder = msgspec.json.Decoder(endpoint.request)

    def decode(self, body: bytes) -> Any:
        """The validated request.

        Raises:
            UnknownField: a field nobody reads. UsageError: not JSON, a wrong type, or a field missing.
        """
        try:
            return self._decoder.decode(body)
        except msgspec.ValidationError as error:
            raise self._invalid(str(error)) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise UsageError("The body is not valid JSON in UTF-8.") from None

    def _invalid(self, text: str) -> UsageError:
        supported = self.endpoint.supported
        if unknown := _UNKNOWN.fullmatch(text):
            name = unknown.group(1)[:_SHOWN_CHARS]
            where = _join(_path(text), name)
            known = self.endpoint.request.__struct_fields__
            hint = did_you_mean(name, known, supported or "Remove it.", cutoff=0.75)
            return UnknownField(f"The field {where!r} is not supported.", hint=hint, param=where)
        if required := _REQUIRED.fullmatch(text):
            where = _join(_path(text), required.group(1))
            return UsageError(f"The field {where!r} is required.", param=where)
        where = _path(text)
        what = _AT.sub("", text).replace("`", "")
        return UsageError(f"{where or 'The body'}: {what[:200]}.", param=where or None)


def _path(text: str) -> str:
    found = _AT.search(text)
    return "" if found is None else found.group(1).removeprefix("$").lstrip(".")


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
