"""What a server proves itself with, and whom it lets in: certificates and keys, in files.

The files of a directory have the names that QEMU and nbdkit give them: server-cert.pem and
server-key.pem, and for clients that have to show a certificate ca-cert.pem, with ca-crl.pem where
some were revoked. Pre-shared keys lie in one file, a line `NAME:KEY` for each, the key in
hexadecimal digits, as psktool writes it.
"""

from __future__ import annotations

import os
import ssl
from typing import Any, Final, NoReturn

from tapcore.errors import TapError, UsageError, describe
from tapcore.nbd.tlskeys import KeyContext
from tapcore.nbd.tlsoptions import TlsOptions

CA: Final = "ca-cert.pem"
REVOKED: Final = "ca-crl.pem"
CERTIFICATE: Final = "server-cert.pem"
KEY: Final = "server-key.pem"

_SHORT: Final = {
    "commonName": "CN",
    "localityName": "L",
    "stateOrProvinceName": "ST",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "countryName": "C",
    "streetAddress": "STREET",
    "domainComponent": "DC",
    "userId": "UID",
}
"""RFC 2253, section 2.3; other types have the names that OpenSSL gives them."""


class Credentials:
    """What new connections are encrypted with, until it is read again.

    Args:
        options: where the files lie, and what is wanted of clients.

    Attributes:
        options: as given.
        context: for the server's side of connections, as read last; at least TLS 1.2.

    Raises:
        UsageError: a file is missing or not what it should be.
    """

    def __init__(self, options: TlsOptions) -> None:
        self.options = options
        self.context = self._load()

    def reload(self) -> str:
        """Read the files again; where that fails, all stays as it is.

        Returns:
            What is wrong with them, or nothing.
        """
        try:
            self.context = self._load()
        except TapError as exc:
            return str(exc)
        return ""

    def refusal(self, peer: ssl.SSLSocket) -> str:
        """Why a client whose TLS handshake is over may not come after all; empty where it may."""
        allowed = self.options.allowed
        if not allowed:
            return ""
        subject = subject_of(peer.getpeercert() or {})
        return "" if subject in allowed else f"its certificate's subject is {subject}"

    def _load(self) -> ssl.SSLContext:
        context = KeyContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
        context.num_tickets = 0  # clients of NBD do not resume sessions, and each ticket costs
        if self.options.psk:
            _load_keys(context, self.options.psk)
        else:
            self._load_certificates(context)
        return context

    def _load_certificates(self, context: ssl.SSLContext) -> None:
        certificate, key = self._file(CERTIFICATE), self._file(KEY)
        try:
            context.load_cert_chain(certificate, key, _no_password(key))
        except ssl.SSLError as exc:
            text = f"and {KEY} are not a certificate and its key: {_words(exc)}"
            raise UsageError(text, image=certificate) from None
        if not self.options.verify_peer and not self.options.allowed:
            return
        context.verify_mode = ssl.CERT_REQUIRED
        _trust(context, self._file(CA))
        if os.path.exists(os.path.join(self.options.certificates, REVOKED)):
            context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
            _trust(context, self._file(REVOKED))

    def _file(self, name: str) -> str:
        path = os.path.join(self.options.certificates, name)
        _read(path)
        return path


def _trust(context: ssl.SSLContext, path: str) -> None:
    try:
        context.load_verify_locations(path)
    except ssl.SSLError as exc:
        raise UsageError(f"is not what its name says: {_words(exc)}", image=path) from None


def _read(path: str) -> str:
    """A file's content; raises UsageError."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError as exc:
        raise UsageError(describe(exc), image=path, errno=exc.errno) from None
    except UnicodeDecodeError:
        raise UsageError("is not a text file", image=path) from None


def _words(exc: ssl.SSLError) -> str:
    return (exc.reason or "not PEM").replace("_", " ").lower()


def _no_password(path: str) -> Any:
    """Rather than ask for one on the terminal, in the middle of serving perhaps."""

    def refuse() -> NoReturn:
        raise UsageError("is encrypted, and has to be without a passphrase", image=path)

    return refuse


def _load_keys(context: KeyContext, path: str) -> None:
    keys: dict[str, bytes] = {}
    for number, line in enumerate(_read(path).splitlines(), 1):
        name, colon, digits = line.strip().rpartition(":")
        if not line.strip() or line.startswith("#"):
            continue
        try:
            keys[name] = bytes.fromhex(digits)
        except ValueError:
            colon = ""
        if not (name and colon and keys[name]):
            raise UsageError(f"line {number} is not NAME:KEY in hexadecimal digits", image=path)
    if not keys:
        raise UsageError("has no keys", image=path)
    context.take_keys(lambda name: keys.get(name, b""))


def subject_of(certificate: dict[str, Any]) -> str:
    """A certificate's subject as RFC 2253 writes it: the most specific part first.

    Args:
        certificate: as `SSLObject.getpeercert` gives it.
    """
    parts = certificate.get("subject", ())
    return ",".join("+".join(map(_attribute, part)) for part in reversed(parts))


def _attribute(pair: tuple[str, str]) -> str:
    kind, value = pair
    escaped = "".join("\\" + each if each in ',+"\\<>;' else each for each in value)
    if escaped.endswith(" "):
        escaped = escaped[:-1] + "\\ "
    if escaped.startswith((" ", "#")):
        escaped = "\\" + escaped
    return f"{_SHORT.get(kind, kind)}={escaped}"
