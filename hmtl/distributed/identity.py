"""Who a node is: keys and certificates, by which nodes know each other.

A certificate names its node (DNS name). An authority issues it. Keys are on the curve P-256.
"""

import datetime
from dataclasses import dataclass
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

Key = ec.EllipticCurvePrivateKey
EARLIER = datetime.timedelta(days=2)  # before now: clocks may differ


@dataclass(frozen=True)
class Credentials:
    """What a node needs to prove who it is, and to know others, in PEM.

    Attributes:
        key: its private key.
        certificate: its certificate.
        trusted: certificates of authorities.
        revoked: serial numbers of certificates that are trusted no more.
    """

    key: bytes
    certificate: bytes
    trusted: bytes
    revoked: frozenset[int] = frozenset()

    def __repr__(self) -> str:
        return "Credentials(...)"  # keys must not reach a log

    def present(self) -> Self:
        """Return those of the present: these."""
        return self


def make_key() -> Key:
    """Return a new private key."""
    return ec.generate_private_key(ec.SECP256R1())


def key_to_pem(key: Key) -> bytes:
    """Return a private key in PEM, without a password."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def to_pem(certificate: x509.Certificate) -> bytes:
    """Return a certificate in PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def serial_of(certificate: bytes) -> int:
    """Return the serial number of a certificate in PEM."""
    return x509.load_pem_x509_certificate(certificate).serial_number


def names_of(certificate: bytes) -> list[str]:
    """Return the DNS names in a certificate in PEM."""
    values = [each.value for each in x509.load_pem_x509_certificate(certificate).extensions]
    names = [each for each in values if isinstance(each, x509.SubjectAlternativeName)]
    return [name for each in names for name in each.get_values_for_type(x509.DNSName)]


def make_authority(name: str, days: int) -> tuple[Key, x509.Certificate]:
    """Return the key and the certificate of a new authority."""
    key = make_key()
    return key, _builder(name, key, _subject(name), days, signs=True).sign(key, hashes.SHA256())


def issue(identity: str, key: Key, days: int, authority: tuple[Key, x509.Certificate]) -> x509.Certificate:
    """Return a node's certificate.

    Args:
        identity: a DNS name.
        key: the node's.
        days: how long the certificate is valid.
        authority: its key and certificate.
    """
    names = x509.SubjectAlternativeName([x509.DNSName(identity)])
    builder = _builder(identity, key, authority[1].subject, days, signs=False).add_extension(names, critical=False)
    return builder.sign(authority[0], hashes.SHA256())


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _builder(name: str, key: Key, issuer: x509.Name, days: int, signs: bool) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    usage = x509.KeyUsage(not signs, False, False, False, False, signs, signs, False, False)
    return (
        x509.CertificateBuilder()
        .subject_name(_subject(name))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - EARLIER)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(signs, 0 if signs else None), critical=True)
        .add_extension(usage, critical=True)
    )
