"""The field and its matrix products against galois and products of polynomials."""

import numpy as np
import pytest
import torch
from coding_oracles import TABLE, product
from hypothesis import example, given
from hypothesis import strategies as st

from hmtl.errors import CodingError
from hmtl.gf256 import products


def draw(seed, *shape):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def test_all_products():
    np.testing.assert_array_equal(products.PRODUCTS.numpy(), TABLE)


def test_all_inverses():
    inverses = products.INVERSES.numpy()
    assert inverses[0] == 0
    assert (TABLE[np.arange(1, 256), inverses[1:]] == 1).all()


@pytest.mark.slow
def test_products_and_inverses_are_those_of_galois():
    import galois  # late: it compiles for seconds

    GF = galois.GF(2**8, irreducible_poly=0x11D)
    np.testing.assert_array_equal(products.PRODUCTS.numpy(), GF(np.arange(256))[:, None] * GF(np.arange(256)))
    np.testing.assert_array_equal(products.INVERSES[1:].numpy(), GF(np.arange(1, 256)) ** -1)


@pytest.mark.parametrize("vectors", [True, False])
@given(
    shape=st.tuples(st.integers(0, 14), st.integers(0, 45), st.integers(0, 300)),
    zeros=st.floats(0, 1),
    layout=st.sampled_from(["plain", "transposed", "strided", "offset", "repeated"]),
    seed=st.integers(0, 2**32 - 1),
)
@example(shape=(5, 9, 17), zeros=1.0, layout="plain", seed=0)
@example(shape=(1, 1, 1), zeros=0.0, layout="offset", seed=0)
def test_matmul_on_any_shape_and_layout(vectors, shape, zeros, layout, seed):
    """With vector instructions, and on processors without any."""
    n, m, L = shape
    A, X = draw(seed, n, m), draw(seed + 1, m, L)
    A[:, torch.from_numpy(np.random.default_rng(seed).random(m) < zeros)] = 0
    if layout == "transposed":
        A, X = A.T.contiguous().T, X.T.contiguous().T
    elif layout == "strided":
        A, X = draw(seed, 2 * n, 3 * m)[::2, ::3], draw(seed, 2 * m, 2 * L)[1::2, ::2]
    elif layout == "offset":
        A, X = draw(seed, n * m + 1)[1:].view(n, m), draw(seed, m, L + 3)[:, 3:]
    elif layout == "repeated":
        X = draw(seed, 1, L).expand(m, L)
    before = A.clone(), X.clone()
    with pytest.MonkeyPatch.context() as patch:
        if not vectors:
            patch.setattr(products.instructions, "usable", lambda: ())
        found = products.matmul(A, X)
    assert found.dtype == torch.uint8
    assert found.is_contiguous()
    np.testing.assert_array_equal(found.numpy(), product(A.numpy(), X.numpy()))
    assert torch.equal(A, before[0])
    assert torch.equal(X, before[1])


@pytest.mark.parametrize(
    ("A", "X", "name"),
    [(torch.zeros(2, 3), draw(0, 3, 4), "A"), (draw(0, 2, 3), draw(0, 3), "X"), (draw(0, 2, 3), draw(0, 4, 5), "X")],
)
def test_matmul_names_the_argument_that_does_not_fit(A, X, name):
    with pytest.raises(CodingError, match=name):
        products.matmul(A, X)
