"""The folder of certificates of a deployment: what its authority writes there, and what a node reads."""

import logging
import os
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hmtl.distributed.identity import Credentials, Key, issue, key_to_pem, make_authority, make_key, serial_of, to_pem
from hmtl.errors import ConfigError

log = logging.getLogger(__name__)
DAYS, AUTHORITY_DAYS = 825, 3650  # for which certificates are valid
SOON = timedelta(days=30)
"""A certificate that expires within this time is to be renewed."""
MAKE = "Make it with python -m hmtl.certificates, and copy it to this machine."


def open_authority(folder: Path, keys: Path) -> tuple[Key, x509.Certificate]:
    """Return the key `KEYS/ca.key` and the certificate `FOLDER/ca.pem` of an authority, made if neither is there.

    Raises:
        ConfigError: one of the two is missing or damaged, or they do not belong together.
    """
    certificate, key = folder / "ca.pem", keys / "ca.key"
    if not certificate.exists() and not key.exists():
        new = make_authority("hmtl", AUTHORITY_DAYS)
        _write(key, key_to_pem(new[0]), 0o600)
        _write(certificate, to_pem(new[1]))
    try:
        signer = serialization.load_pem_private_key(key.read_bytes(), None)
        issuer = x509.load_pem_x509_certificate(certificate.read_bytes())
        if not isinstance(signer, ec.EllipticCurvePrivateKey) or signer.public_key() != issuer.public_key():
            raise ValueError
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{certificate} and {key} have to be a certificate and its key, but one is missing or another. Restore it; "
            "or remove both, and make all certificates again with renew=true."
        ) from error
    return signer, issuer


class Files:
    """A node's credentials as its files have them, which are read again whenever one has changed.

    Args:
        files: those files.
        read: reads them, or raises `ConfigError`.
    """

    def __init__(self, files: Sequence[Path], read: Callable[[], Credentials]) -> None:
        self._files, self._read = files, read
        self._seen, self._credentials = [*map(_state, files)], read()

    def present(self) -> Credentials:
        """Return the present credentials; if the files cannot be used, warn once, and return those before."""
        if (seen := [*map(_state, self._files)]) != self._seen:
            self._seen = seen
            try:
                self._credentials = self._read()
                log.info("The certificate with serial number %X is in use.", serial_of(self._credentials.certificate))
            except (ConfigError, OSError) as error:
                log.warning("%s Until then, what was read before is used.", error)
        return self._credentials


def _state(path: Path) -> tuple[int, ...]:
    try:
        stat = path.stat()
    except OSError:
        return ()
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def certify(
    folder: Path, authority: tuple[Key, x509.Certificate], identity: str, renew: bool, revoked: Collection[int] = ()
) -> bool:
    """Write a node's new key and certificate, and return True; return False if it has some that can be kept.

    They can, if they do not expire soon, and are not revoked.

    Raises:
        ConfigError: it has some that cannot be used, and they are not to be renewed.
    """
    path = folder / f"{identity}.pem"
    if not renew and path.exists():
        present = load_credentials(folder, identity, renewed=True)
        if expiry(present) > _now() + SOON and serial_of(present.certificate) not in revoked:
            return False
    key = make_key()
    _write(folder / f"{identity}.key", key_to_pem(key), 0o600)
    _write(path, to_pem(issue(identity, key, DAYS, authority)))
    return True


def expiry(credentials: Credentials) -> datetime:
    """Return when a certificate expires, or the first of those between it and the authority."""
    return min(each.not_valid_after_utc for each in x509.load_pem_x509_certificates(credentials.certificate))


def load_credentials(folder: Path, identity: str, renewed: bool = False) -> Credentials:
    """Return the credentials in a folder: `IDENTITY.key`, `IDENTITY.pem` with the certificates between, and `ca.pem`.

    Args:
        folder: the folder.
        identity: the DNS name of the node.
        renewed: whether the certificate is about to be renewed, so that it may have expired.

    Raises:
        ConfigError: a file is missing or damaged, or the certificate has expired, is of another name or key, or was not
            signed by an authority in `ca.pem`.
    """
    key, certificate, authority = folder / f"{identity}.key", folder / f"{identity}.pem", folder / "ca.pem"
    try:
        credentials = Credentials(key.read_bytes(), certificate.read_bytes(), authority.read_bytes())
        public = serialization.load_pem_private_key(credentials.key, None).public_key()
        chain, trusted = map(x509.load_pem_x509_certificates, (credentials.certificate, credentials.trusted))
        names = chain[0].extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}. {MAKE}") from error
    except (ValueError, TypeError, x509.ExtensionNotFound) as error:
        raise ConfigError(
            f"{certificate}, its key or ca.pem cannot be used ({str(error).partition(chr(10))[0]}): all have to be PEM "
            f"without a passphrase, and the certificate needs the DNS name {identity}. {MAKE}"
        ) from error
    if identity not in (dns := names.get_values_for_type(x509.DNSName)):
        raise ConfigError(f"{certificate} is the certificate of {', '.join(dns)}, not of {identity}. {MAKE}")
    if not isinstance(public, ec.EllipticCurvePublicKey):
        raise ConfigError(f"{key} is not a key on an elliptic curve, such as P-256. {MAKE}")
    if public != chain[0].public_key():
        raise ConfigError(f"{key} is not the key of {certificate}. Copy both files again.")
    if not _is_trusted(chain, trusted):
        raise ConfigError(f"{certificate} was not signed by the authority in {authority}. Copy both files again.")
    end = expiry(credentials)
    if end < _now() and not renewed:
        raise ConfigError(
            f"{certificate} expired on {end:%Y-%m-%d}. Renew it with python -m hmtl.certificates, and copy it to this "
            "machine."
        )
    if end < _now() + SOON and not renewed:
        log.warning("%s expires on %s: renew it with python -m hmtl.certificates", certificate, f"{end:%Y-%m-%d}")
    if key.stat().st_mode & 0o077:
        log.warning("other users of this machine can read %s: change its mode to 600", key)
    return credentials


def _is_trusted(chain: Sequence[x509.Certificate], trusted: Sequence[x509.Certificate]) -> bool:
    """Return whether each certificate was signed by the next one, and the last by a trusted one."""
    signed = [_is_signed(*pair) for pair in pairwise(chain)]
    return all(signed) and any(_is_signed(chain[-1], authority) for authority in trusted)


def _is_signed(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _now() -> datetime:
    return datetime.now(UTC)


def _write(path: Path, content: bytes, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
