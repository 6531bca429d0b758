"""What a user says of TLS."""

from __future__ import annotations

import attrs

from tapcore.nbd.handshake import TlsMode


@attrs.frozen
class TlsOptions:
    """How a server does TLS.

    Attributes:
        mode: whether it is offered, or required.
        certificates: the directory of certificates and keys; empty where there is none.
        verify_peer: clients have to show a certificate that the CA has signed.
        allowed: subjects of the clients that may come, as RFC 2253 writes them; empty: all.
        psk: the file of pre-shared keys; empty where there is none.
    """

    mode: TlsMode
    certificates: str = ""
    verify_peer: bool = False
    allowed: tuple[str, ...] = ()
    psk: str = ""
