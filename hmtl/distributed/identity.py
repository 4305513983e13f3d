"""Who a node is: keys and certificates, by which nodes know each other.

A certificate names its node (DNS name). An authority issues it, or the node itself. Keys are on the curve P-256.
"""

import datetime
from dataclasses import dataclass

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
        trusted: certificates of the authority, or of all nodes that signed their own.
    """

    key: bytes
    certificate: bytes
    trusted: bytes

    def __repr__(self) -> str:
        return "Credentials(...)"  # keys must not reach a log


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


def make_authority(name: str, days: int) -> tuple[Key, x509.Certificate]:
    """Return the key and the certificate of a new authority."""
    key = make_key()
    subject = _subject(name)
    builder = _builder(subject, key, subject, days).add_extension(x509.BasicConstraints(True, 0), critical=True)
    usage = _usage(signs=True)
    return key, builder.add_extension(usage, critical=True).sign(key, hashes.SHA256())


def issue(
    identity: str, key: Key, days: int, authority: tuple[Key, x509.Certificate] | None = None
) -> x509.Certificate:
    """Return a node's certificate.

    Args:
        identity: a DNS name.
        key: the node's.
        days: how long the certificate is valid.
        authority: its key and certificate; None: the node signs its certificate itself.
    """
    subject = _subject(identity)
    issuer = authority[1].subject if authority else subject
    names = x509.SubjectAlternativeName([x509.DNSName(identity)])
    builder = _builder(subject, key, issuer, days).add_extension(names, critical=False)
    builder = builder.add_extension(x509.BasicConstraints(False, None), critical=True)
    builder = builder.add_extension(_usage(signs=False), critical=True)
    return builder.sign(authority[0] if authority else key, hashes.SHA256())


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _builder(subject: x509.Name, key: Key, issuer: x509.Name, days: int) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - EARLIER)
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _usage(signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(not signs, False, False, False, False, signs, signs, False, False)
