"""Shamir's sharing, beside interpolation by another library, and over all polynomials."""

from itertools import combinations

import galois
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmtl.coding import shamir
from hmtl.gf256.simd import POLYNOMIAL

FIELD = galois.GF(
    2**8, irreducible_poly=POLYNOMIAL, compile="python-calculate"
)  # without numba, which compiles for long


@given(
    st.integers(1, 12).flatmap(lambda k: st.tuples(st.just(k), st.integers(1, k))),
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(0, 2**32 - 1),
)
def test_any_t_shares_give_the_secret(k_and_t: tuple[int, int], n: int, s: int, seed: int) -> None:
    (k, t), rng = k_and_t, np.random.default_rng(seed)
    secrets = rng.integers(0, 256, (n, s), np.uint8)
    shares = shamir.split(secrets, k, t)
    assert shares.shape == (n, k, s)
    chosen = np.stack([rng.permutation(k)[:t] for _ in range(n)])
    joined = shamir.join(chosen, np.take_along_axis(shares, chosen[:, :, None], axis=1))
    assert joined.tolist() == secrets.tolist()
    all_points, points = FIELD(np.arange(1, k + 1, dtype=np.uint8)), FIELD((chosen[0] + 1).astype(np.uint8))
    polynomial = galois.lagrange_poly(points, FIELD(shares[0, chosen[0], 0]))
    assert int(polynomial(0)) == secrets[0, 0]
    assert polynomial(all_points).tolist() == shares[0, :, 0].tolist(), "all shares lie on one polynomial"


def test_the_most_shares() -> None:
    secret = np.arange(16, dtype=np.uint8)[None]
    shares = shamir.split(secret, shamir.MAX_SHARES, 100)
    last = np.arange(155, 255)[None]
    assert shamir.join(last, shares[:, 155:]).tolist() == secret.tolist()


@pytest.mark.parametrize(("k", "t"), [(4, 2), (3, 3)])
def test_fewer_shares_are_equally_likely_for_all_secrets(k: int, t: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One polynomial for each secret and each value of any t − 1 shares, of all 256^(t − 1)."""
    polynomials = 256 ** (t - 1)
    grid = np.indices((256,) * (t - 1), np.uint8).reshape(t - 1, -1)
    monkeypatch.setattr(shamir.secrets, "token_bytes", lambda count: grid.tobytes()[:count])
    weights = 256 ** np.arange(t - 1)
    for secret in range(256):
        shares = shamir.split(np.full((polynomials, 1), secret, np.uint8), k, t)[:, :, 0].astype(np.int64)
        for held in combinations(range(k), t - 1):
            seen = np.bincount(shares[:, held] @ weights, minlength=polynomials)
            assert (seen == 1).all()


def test_secrets_do_not_share_a_polynomial() -> None:
    """Two equal secrets, byte by byte: their shares differ."""
    shares = shamir.split(np.zeros((2, 64), np.uint8), 3, 2)
    assert len(np.unique(shares[:, 0])) > 64
