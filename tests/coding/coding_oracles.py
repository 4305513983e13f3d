"""Oracles of the tests of coding: the field, products and formulas, restated from their definitions."""

from fractions import Fraction

import numpy as np
from scipy.optimize import linprog


def carryless(a, b):
    """Return a·b in GF(2^8): the product of polynomials, and its remainder modulo 0x11D."""
    product = np.zeros(np.broadcast_shapes(np.shape(a), np.shape(b)), dtype=np.int64)
    for bit in range(8):
        product ^= ((b >> bit) & 1) * (a << bit)
    for bit in range(14, 7, -1):
        product ^= ((product >> bit) & 1) * (0x11D << (bit - 8))
    return product.astype(np.uint8)


TABLE = carryless(np.arange(256)[:, None], np.arange(256))


def product(A, X):
    """Return A·X over GF(2^8), term by term."""
    return np.bitwise_xor.reduce(TABLE[A[:, :, None], X[None]], axis=1) if A.shape[1] else np.zeros_like(A @ X)


def regular(A):
    """Return whether A [n, n] is invertible over GF(2^8), by schoolbook elimination."""
    A = A.copy()
    for j in range(len(A)):
        rows = j + np.flatnonzero(A[j:, j])
        if not len(rows):
            return False
        A[[j, rows[0]]] = A[[rows[0], j]]
        A[j] = TABLE[np.argmax(TABLE[A[j, j]] == 1), A[j]]
        A[j + 1 :] ^= TABLE[A[j + 1 :, j, None], A[j]]
    return True


def execute(plan):
    """Carry out a plan on random IVs: each receiver decodes, and relays send only what they hear.

    Return the IVs that each relay sends coded [H], the broadcast, all copies, and who knows which IV in the end [H, K].
    """
    t, rng, down, copies = plan.topology, np.random.default_rng(0), 0.0, 0.0
    sent, knows = np.zeros(t.H), t.G == 1
    for block in plan.blocks:
        c, users = block.pieces, np.array(block.users)
        pieces = rng.integers(0, 256, (len(users) * c, 2))
        heard = [(np.array(places, dtype=int)[:, None] * c + np.arange(c)).ravel() for places in block.heard]
        messages = [product(matrix.numpy(), pieces[rows]) for matrix, rows in zip(block.uplink, heard, strict=True)]
        broadcast = product(block.downlink.numpy(), pieces if plan.server else np.concatenate(messages))
        for n, (i, places, message) in enumerate(zip(t.active, block.heard, messages, strict=True)):
            decodes = not plan.server or n in block.aggregators
            assert set(users[list(places)]) == (set(users) & set(t.N(i)) if decodes else set())
            sent[i] += len(message) / c
        down += len(broadcast) / c
        for n, decoder in zip(block.aggregators, block.decoders, strict=True):
            missing = np.setdiff1d(np.arange(len(pieces)), heard[n])
            decoded = product(decoder.numpy(), np.concatenate([broadcast[: len(missing)], pieces[heard[n]]]))
            np.testing.assert_array_equal(decoded, pieces[missing])
            knows[t.active[n], users] = True
            copies += len(missing) / c
    return sent, down, copies, knows


def parts(G):
    """Yield, for each z, the users that z relays hear, as sets per relay, and n_i^z."""
    active = [set(np.flatnonzero(row)) for row in G if row.any()]
    for z in range(1, len(active)):
        users = {k for k in range(G.shape[1]) if G[:, k].sum() == z}
        if users:
            hears = [heard & users for heard in active]
            n = [len(a) - min(len(a & b) for j, b in enumerate(hears) if j != i) for i, a in enumerate(hears)]
            yield z, users, hears, n


def theorem_1(G, scheme):
    """Return (33a) and (33b), with an independent solver on all users of I_z and α ≤ 1."""
    up, down = 0.0, 0
    for z, users, hears, n in parts(G):
        if scheme == "equal":
            up += float(sum(Fraction(n_i, z) for n_i, heard in zip(n, hears, strict=True) if heard))
        else:
            covers = -np.array([[k in heard for heard in hears] for k in users], dtype=float)
            up += linprog(n, covers, -np.ones(len(users)), bounds=(0, 1), method="highs-ipm").fun
        down += len(users) - min(len(heard) for heard in hears)
    return up, down
