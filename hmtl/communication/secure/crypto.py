"""Cryptography of secure sums, for `masking`: key agreement, sealed messages, random numbers from a seed."""

import secrets
from hashlib import blake2b

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from numpy.typing import NDArray

KEY_BYTES = 32  # bytes of a key of X25519 or ChaCha20
SEED_BYTES = 16  # bytes of a seed
TAG_BYTES = 16  # bytes that sealing adds
KEY_DIGEST_BYTES = 40  # of a digest


def new_seed() -> bytes:
    """Return a random seed, from the operating system: a named generator would be known to everybody."""
    return secrets.token_bytes(SEED_BYTES)


def key_from(seed: bytes) -> X25519PrivateKey:
    """Return the private key that follows from a seed."""
    return X25519PrivateKey.from_private_bytes(_derived(seed, b"private key"))


def agree(own: X25519PrivateKey, other: bytes) -> bytes:
    """Return what the owners of two keys agree on, and nobody else knows, given one's private, the other's public."""
    return _derived(own.exchange(X25519PublicKey.from_public_bytes(other)), b"agreement")


def digest(content: bytes) -> bytes:
    """Return what nobody can compute of other content."""
    return blake2b(content, digest_size=KEY_DIGEST_BYTES).digest()


def seal(key: bytes, first: bool, content: bytes) -> bytes:
    """Return content sealed with an agreed key, which each of the two owners uses once; `first` names one of them."""
    return ChaCha20Poly1305(key).encrypt(_nonce(first), content, None)


def unseal(key: bytes, first: bool, sealed: bytes) -> bytes | None:
    """Return what the owner named by `first` sealed; None if it did not seal this."""
    try:
        return ChaCha20Poly1305(key).decrypt(_nonce(first), sealed, None)
    except InvalidTag:
        return None


def expand(seed: bytes, part: int, count: int, bits: int) -> NDArray[np.unsignedinteger]:
    """Return uniform numbers modulo 2^bits [count] that follow from a seed and the number of a part.

    They are in the smallest type of 8, 16, 32 or 64 bits that holds them, and may have further bits, likewise random.
    """
    dtype = np.min_scalar_type(2**bits - 1)
    key, nonce = _derived(seed, b"numbers"), bytes(8) + part.to_bytes(8, "little")  # after the counter of blocks
    stream = Cipher(algorithms.ChaCha20(key, nonce), mode=None).encryptor().update(bytes(count * dtype.itemsize))
    return np.frombuffer(stream, dtype.newbyteorder("<"))


def _derived(secret: bytes, purpose: bytes) -> bytes:
    return blake2b(purpose, key=secret, digest_size=KEY_BYTES).digest()


def _nonce(first: bool) -> bytes:
    return bytes([first]) + bytes(11)
