"""Pre-shared keys of TLS clients: by Python's `ssl` from 3.13 on, before by its OpenSSL itself.

The older ones have no method for it. Their context is OpenSSL's all the same, and the library that
they have loaded is asked by ctypes. No other OpenSSL may be: there can be two in a process.
"""

from __future__ import annotations

import _ssl
import ctypes
import ssl
import sys
from collections.abc import Callable
from typing import Any, Final

from tapcore.errors import UsageError

KeyOf = Callable[[str], bytes]
"""A client's key, by its name; empty where it has none."""

CIPHERS: Final = "kECDHEPSK+CHACHA20:kDHEPSK+AESGCM:kPSK+AESGCM:kPSK+CHACHA20"
"""Of TLS 1.2, those that authenticate what they encrypt; "PSK" alone would let clients have none at
all. First those whose old conversations stay secret when a key becomes known."""

_CALLBACK: Final = ctypes.CFUNCTYPE(
    ctypes.c_uint,
    ctypes.c_void_p,  # the connection
    ctypes.c_char_p,  # who the client says that it is
    ctypes.c_void_p,  # where its key is wanted
    ctypes.c_uint,  # how many bytes there are
)
"""`SSL_psk_server_cb_func`: returns the bytes of the key, or 0."""

_NEEDED: Final = "pre-shared keys need Python 3.13, or a CPython with an OpenSSL of its own file"


class KeyContext(ssl.SSLContext):
    """A server's, for clients that prove themselves with a key.

    OpenSSL knows the way to the keys by address alone, so it has to live as long as the context,
    which each connection keeps alive.
    """

    _tapcore_tell: object = None

    def take_keys(self, key_of: KeyOf) -> None:
        """Ask for a client's key from now on.

        Raises:
            UsageError: this Python cannot.
        """
        self.set_ciphers(CIPHERS)
        if sys.version_info >= (3, 13):
            self.set_psk_server_callback(lambda name: key_of(name or ""))
        else:
            self._tapcore_tell = _tell_openssl(self, key_of)


def _tell_openssl(context: ssl.SSLContext, key_of: KeyOf) -> object:
    """As `SSL_CTX_set_psk_server_callback(3)`; returns what has to be kept."""

    def tell(_: int | None, name: bytes | None, place: int, most: int) -> int:
        key = key_of((name or b"").decode(errors="replace"))
        if len(key) > most:
            return 0
        ctypes.memmove(place, key, len(key))
        return len(key)

    library = _openssl()
    # CPython up to 3.12: what an `_ssl._SSLContext` holds first is the address of OpenSSL's.
    address = ctypes.c_void_p.from_address(id(context) + object.__basicsize__)
    if library.SSL_CTX_get_options(address) != context.options:
        raise UsageError(_NEEDED)
    callback = _CALLBACK(tell)
    library.SSL_CTX_set_psk_server_callback(address, callback)
    return callback


def _openssl() -> Any:
    """The library that `ssl` uses."""
    try:
        library = ctypes.CDLL(_ssl.__file__)
        library.SSL_CTX_get_options.argtypes = [ctypes.c_void_p]
        library.SSL_CTX_get_options.restype = ctypes.c_uint64
        library.SSL_CTX_set_psk_server_callback.argtypes = [ctypes.c_void_p, _CALLBACK]
        library.SSL_CTX_set_psk_server_callback.restype = None
    except (AttributeError, OSError):
        raise UsageError(_NEEDED) from None
    if sys.implementation.name != "cpython":
        raise UsageError(_NEEDED)
    return library
