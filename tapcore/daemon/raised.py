"""Errors that were raised on the other side of a socket."""

from __future__ import annotations

from tapcore import errors
from tapcore.daemon.jsonrpc import RpcError
from tapcore.errors import TapError


def raised_there(error: RpcError) -> TapError:
    """The exception of the other side, where it is one of ours."""
    kind = getattr(errors, error.kind, None)
    if isinstance(kind, type) and issubclass(kind, TapError):
        found: TapError = kind(error.message, image=error.image, errno=error.errno)
        return found
    return error
