"""Certificates for tests, in directories with the names that QEMU and nbdkit give to files."""

import datetime
import ipaddress
from collections.abc import Mapping
from pathlib import Path

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_NOW = datetime.datetime.now(datetime.UTC)
_DAY = datetime.timedelta(days=1)


def _name(subject: Mapping[str, str]) -> x509.Name:
    kinds = {"C": NameOID.COUNTRY_NAME, "O": NameOID.ORGANIZATION_NAME, "CN": NameOID.COMMON_NAME}
    return x509.Name([x509.NameAttribute(kinds[kind], text) for kind, text in subject.items()])


def _pem(thing: x509.Certificate | x509.CertificateRevocationList) -> bytes:
    return thing.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey, password: bytes = b"") -> bytes:
    hidden = (
        serialization.BestAvailableEncryption(password)
        if password
        else serialization.NoEncryption()
    )
    kind = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, kind, hidden)


@attrs.define
class Authority:
    """Somebody who signs."""

    key: ec.EllipticCurvePrivateKey = attrs.field(
        factory=lambda: ec.generate_private_key(ec.SECP256R1())
    )
    name: x509.Name = attrs.field(factory=lambda: _name({"CN": "an authority"}))

    @property
    def pem(self) -> bytes:
        """Its own certificate."""
        builder = self._builder(self.name, self.key)
        constraint = x509.BasicConstraints(ca=True, path_length=None)
        builder = builder.add_extension(constraint, critical=True)
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        return _pem(builder.add_extension(usage, critical=True).sign(self.key, hashes.SHA256()))

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, serial: int | None = None
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(serial or x509.random_serial_number())
            .not_valid_before(_NOW - _DAY)
            .not_valid_after(_NOW + _DAY)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()),
                critical=False,
            )
        )

    def give(
        self,
        where: Path,
        role: str,
        subject: Mapping[str, str] | None = None,
        *,
        serial: int | None = None,
        password: bytes = b"",
    ) -> Path:
        """A directory with a certificate and its key, for a "server" or a "client"."""
        where.mkdir(exist_ok=True)
        key = ec.generate_private_key(ec.SECP256R1())
        use = (
            ExtendedKeyUsageOID.SERVER_AUTH if role == "server" else ExtendedKeyUsageOID.CLIENT_AUTH
        )
        names: list[x509.GeneralName] = [
            x509.DNSName("localhost"),
            x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        ]
        signed = (
            self._builder(_name(subject or {"CN": "localhost"}), key, serial)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([use]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        (where / "ca-cert.pem").write_bytes(self.pem)
        (where / f"{role}-cert.pem").write_bytes(_pem(signed))
        (where / f"{role}-key.pem").write_bytes(_key_pem(key, password))
        return where

    def revoke(self, where: Path, serial: int) -> None:
        """A list of revoked certificates in a directory."""
        revoked = (
            x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(_NOW - _DAY)
        )
        found = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.name)
            .last_update(_NOW - _DAY)
            .next_update(_NOW + _DAY)
            .add_revoked_certificate(revoked.build())
            .sign(self.key, hashes.SHA256())
        )
        (where / "ca-crl.pem").write_bytes(_pem(found))
