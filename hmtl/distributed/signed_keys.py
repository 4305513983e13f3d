"""Signed keys of secure sums: a host signs what its users advertise, so that nobody in between can swap it.

The controller passes on what hosts sign. A host trusts neither it nor relays: it checks certificates by its own
authority, and knows from its own copy of the site's file which host has which user. A signature serves only once: for
one round of some nodes, and for a nonce of each host, which the host draws when its nodes are made.
"""

import json
import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.verification import ClientVerifier, Criticality, ExtensionPolicy, PolicyBuilder, Store

from hmtl.communication.secure.crypto import KEY_DIGEST_BYTES
from hmtl.distributed.certificates import expiry
from hmtl.distributed.identity import Credentials
from hmtl.distributed.mail import Homes
from hmtl.training.engine import Values

log = logging.getLogger(__name__)
CONTEXT = "hmtl: keys of secure sums"  # the key also signs handshakes of TLS
SIGNATURE_ALGORITHM = ec.ECDSA(SHA256())
ANY = ExtensionPolicy.permit_all()
AUTHORITY = ANY.require_present(x509.BasicConstraints, Criticality.AGNOSTIC, None)  # others issue no certificates


class SignedKeys:
    """What a host signs and checks for some nodes, see `Cell.nodes` and `hmtl.communication.nodes.secure.Notary`.

    Args:
        name: of the host.
        identities: the DNS name in each node's certificate.
        credentials: returns those of the host at present, see `hmtl.distributed.dialing.Party`.
        homes: the users of each host.
        nodes: the name of the nodes.

    Attributes:
        nonce: drawn for these nodes.
        notes: what the controller passed on, by host: their nonces before `sign`, and what they signed before `signed`.
        note: what this host signed; {}: nothing.
    """

    def __init__(
        self,
        name: str,
        identities: Mapping[str, str],
        credentials: Callable[[], Credentials],
        homes: Homes,
        nodes: str,
    ) -> None:
        self._name, self._identities, self._credentials = name, identities, credentials
        self._homes, self._nodes = homes, nodes
        self.nonce = secrets.token_hex()
        self.notes: Values = {}
        self.note: Values = {}

    def sign(self, round: int, digests: Mapping[int, bytes]) -> bool:
        """Sign digests, with random ones for users who are absent, as nobody needs to know who they are.

        Return False if the certificate has expired, so that others would not accept it.
        """
        own = self._credentials()
        if expiry(own) < datetime.now(UTC):
            log.warning("round %d: the certificate of %s has expired, so its users are absent", round, self._name)
            return False
        keys = [digests.get(k, secrets.token_bytes(KEY_DIGEST_BYTES)).hex() for k in self._homes[self._name].tolist()]
        content = json.dumps([CONTEXT, self._nodes, round, {**self.notes, self._name: self.nonce}, keys])
        key = load_pem_private_key(own.key, None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        signature, certificate = key.sign(content.encode(), SIGNATURE_ALGORITHM).hex(), own.certificate.decode()
        self.note = {"content": content, "signature": signature, "certificate": certificate}
        return True

    def signed(self, round: int) -> dict[int, bytes]:
        """Return the digests that hosts signed in a round, by user; log which signatures are not used, and why."""
        digests: dict[int, bytes] = {}
        trusted = Store(x509.load_pem_x509_certificates(self._credentials().trusted))
        policy = PolicyBuilder().store(trusted).extension_policies(ee_policy=ANY, ca_policy=AUTHORITY)
        verifier = policy.build_client_verifier()
        for host in [each for each in self._homes if each in self.notes]:
            try:
                digests |= zip(self._homes[host].tolist(), self._checked(host, round, verifier), strict=True)
            except Exception as error:  # cryptography raises various ones
                why = str(error).partition("\n")[0] or type(error).__name__
                log.warning("round %d: what %s signed is not used: %s", round, host, why)
        return digests

    def _checked(self, host: str, round: int, verifier: ClientVerifier) -> Sequence[bytes]:
        """Return the digests that a host signed; raise an error of any type if they are not to be used."""
        note = self.notes[host]
        certificate, *between = x509.load_pem_x509_certificates(note["certificate"].encode())
        names = verifier.verify(certificate, between).subjects
        if x509.DNSName(self._identities[host]) not in (names or ()):
            raise ValueError("the certificate is of another node")
        if certificate.serial_number in self._credentials().revoked:
            raise ValueError("the certificate is revoked")
        key = certificate.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        key.verify(bytes.fromhex(note["signature"]), note["content"].encode(), SIGNATURE_ALGORITHM)
        *context, nonces, keys = json.loads(note["content"])
        if context != [CONTEXT, self._nodes, round] or nonces.get(self._name) != self.nonce:
            raise ValueError("it is of another round")
        return [bytes.fromhex(each) for each in keys]
