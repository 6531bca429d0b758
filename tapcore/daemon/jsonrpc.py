"""JSON-RPC 2.0, one object a line, as machines without I/O: bytes in, messages out.

Source: the JSON-RPC 2.0 specification. Of it, batches are refused: one object a line.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping
from typing import Any, Final, TypeAlias

import attrs

from tapcore.errors import TapError, describe, errno_of

MAX_REQUEST: Final = 256 << 10
"""Bytes of a line that asks for something."""

MAX_ANSWER: Final = 16 << 20
"""Bytes of a line that answers."""

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
INTERNAL_ERROR: Final = -32603
FAILED: Final = -32000
"""The method was tried, and failed; `data` says with which errno, and at which image."""

CallId: TypeAlias = int | float | str | None


class RpcError(TapError):
    """An answer that is an error.

    Args:
        code: of JSON-RPC.
        message: one line.
        kind: the name of what was raised on the other side; empty where that is not known.
    """

    default_errno = errno.EPROTO

    def __init__(
        self,
        code: int,
        message: str,
        *,
        image: str = "",
        errno: int | None = None,
        kind: str = "",
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message, image=image, errno=errno)
        self.code = code
        self.kind = kind
        self.details = dict(details or {})


class LineTooLongError(TapError):
    """The other side sends a line without an end: nothing after it can be understood."""

    default_errno = errno.EMSGSIZE


class Lines:
    """Cuts a stream into lines.

    Args:
        most: bytes of a line.
    """

    __slots__ = ("_most", "_rest", "_searched")

    def __init__(self, most: int) -> None:
        self._most = most
        self._rest = bytearray()
        self._searched = 0

    @property
    def begun(self) -> bool:
        """Whether a line has begun that has not ended."""
        return bool(self._rest)

    def receive(self, data: bytes) -> None:
        """Take what has arrived."""
        self._rest += data

    def next_line(self) -> bytes | None:
        """The next whole line, without its end; None: it has not arrived yet.

        Raises:
            LineTooLongError: it is too long.
        """
        end = self._rest.find(b"\n", self._searched)
        if (len(self._rest) if end < 0 else end) > self._most:
            raise LineTooLongError(f"a line has {self._most} bytes at most")
        if end < 0:
            self._searched = len(self._rest)
            return None
        line = bytes(self._rest[:end])
        del self._rest[: end + 1]
        self._searched = 0
        return line


@attrs.frozen
class Call:
    """Something is asked for.

    Attributes:
        method: its name.
        params: by name.
        id: which the answer has to bear.
        notification: nobody waits for an answer.
    """

    method: str
    params: Mapping[str, Any] = attrs.field(factory=dict)
    id: CallId = None
    notification: bool = False


@attrs.frozen
class Answer:
    """What came of a call.

    Attributes:
        id: of the call.
        result: what it gave.
        error: what it failed with; None: it did not.
    """

    id: CallId
    result: Any = None
    error: RpcError | None = None


# ---- reading --------------------------------------------------------------------------------


def parse_call(line: bytes) -> Call:
    """A call from a line.

    Raises:
        RpcError: it is none; the specification says with which code. `details` has the "id", where
            one could be read.
    """
    found = _parse(line)
    if isinstance(found, list):
        raise RpcError(INVALID_REQUEST, "a line is one object, not several")
    if not isinstance(found, dict):
        raise RpcError(INVALID_REQUEST, "a line has to be an object")
    known = found.get("id")
    if isinstance(known, bool) or not isinstance(known, int | float | str | None):
        raise RpcError(INVALID_REQUEST, "'id' has to be a number or a string")
    details = {"id": known}
    if found.get("jsonrpc") != "2.0":
        raise RpcError(INVALID_REQUEST, "'jsonrpc' has to be \"2.0\"", details=details)
    method, params = found.get("method"), found.get("params", {})
    if not isinstance(method, str):
        raise RpcError(INVALID_REQUEST, "'method' has to be a string", details=details)
    if isinstance(params, list):
        raise RpcError(INVALID_PARAMS, "parameters are given by name", details=details)
    if not isinstance(params, dict):
        raise RpcError(INVALID_REQUEST, "'params' has to be an object", details=details)
    return Call(method, params, known, "id" not in found)


def parse_answer(line: bytes) -> Answer:
    """An answer from a line.

    Raises:
        RpcError: it is none.
    """
    found = _parse(line)
    if not isinstance(found, dict) or found.get("jsonrpc") != "2.0":
        raise RpcError(INVALID_REQUEST, "what came back is no answer")
    error = found.get("error")
    if isinstance(error, dict):
        return Answer(found.get("id"), None, _error_of(error))
    if "result" not in found:
        raise RpcError(INVALID_REQUEST, "what came back is no answer")
    return Answer(found.get("id"), found["result"])


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as exc:  # UnicodeDecodeError is a ValueError
        raise RpcError(PARSE_ERROR, f"not JSON: {describe(exc)}") from None


def _error_of(error: Mapping[str, Any]) -> RpcError:
    code, message, data = error.get("code"), error.get("message"), error.get("data")
    data = data if isinstance(data, dict) else {}
    image, number, kind = data.get("image"), data.get("errno"), data.get("kind")
    return RpcError(
        code if isinstance(code, int) else INTERNAL_ERROR,
        message if isinstance(message, str) else "an error without words",
        image=image if isinstance(image, str) else "",
        errno=number if isinstance(number, int) and number > 0 else None,
        kind=kind if isinstance(kind, str) else "",
        details=data,
    )


# ---- writing --------------------------------------------------------------------------------


def call_line(call: Call) -> bytes:
    """A call as a line, with its end."""
    found: dict[str, Any] = {"jsonrpc": "2.0", "method": call.method, "params": dict(call.params)}
    if not call.notification:
        found["id"] = call.id
    return _line(found)


def result_line(known: CallId, result: Any) -> bytes:
    """The answer to a call that succeeded."""
    return _line({"jsonrpc": "2.0", "id": known, "result": result})


def error_line(known: CallId, exc: BaseException) -> bytes:
    """The answer to a call that failed, with what was raised."""
    return _line({"jsonrpc": "2.0", "id": known, "error": error_as_dict(exc)})


def error_as_dict(exc: BaseException) -> dict[str, Any]:
    """`error` of an answer."""
    if isinstance(exc, RpcError):
        code, kind = exc.code, exc.kind
        if code != FAILED and not exc.details:
            return {"code": code, "message": exc.message}
    else:
        code, kind = (FAILED if isinstance(exc, OSError) else INTERNAL_ERROR), type(exc).__name__
    image = exc.image if isinstance(exc, TapError) else getattr(exc, "filename", None)
    details = exc.details if isinstance(exc, RpcError) else {}
    data = {**details, "image": image or None, "errno": errno_of(exc), "kind": kind}
    return {"code": code, "message": describe(exc), "data": data}


def _line(found: Mapping[str, Any]) -> bytes:
    # a byte of a file's name that is not UTF-8 is a lone surrogate, which JSON escapes
    return json.dumps(found, separators=(",", ":")).encode() + b"\n"
