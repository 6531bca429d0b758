"""Pre-shared keys of TLS clients: by Python's `ssl` from 3.13 on, before by its OpenSSL itself."""

from __future__ import annotations

import ssl
import sys
from collections.abc import Callable
from typing import Final

from tapcore.errors import UsageError
from tapcore.nbd.openssl import OpenSslContext

CIPHERS: Final = "kECDHEPSK+CHACHA20:kDHEPSK+AESGCM:kPSK+AESGCM:kPSK+CHACHA20"
"""Of TLS 1.2, those that authenticate what they encrypt; "PSK" alone would let clients have none at
all. First those whose old conversations stay secret when a key becomes known."""


class KeyContext(ssl.SSLContext):
    """A server's, for clients that prove themselves with a key.

    OpenSSL knows the way to the keys by address alone, so it has to live as long as the context,
    which each connection keeps alive.
    """

    _tapcore_tell: object = None

    def take_keys(self, key_of: Callable[[str], bytes]) -> None:
        """Ask for a client's key, by its name, from now on; empty where it has none.

        Raises:
            UsageError: this Python cannot.
        """
        self.set_ciphers(CIPHERS)
        if sys.version_info >= (3, 13):
            self.set_psk_server_callback(lambda name: key_of(name or ""))
            return
        try:
            below = OpenSslContext(self)
        except LookupError as exc:
            raise UsageError(f"pre-shared keys need Python 3.13: {exc}") from None
        self._tapcore_tell = below.take_keys(lambda name: key_of(name.decode(errors="replace")))
