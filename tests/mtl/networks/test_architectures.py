"""Architectures: shapes of rows that they take and refuse."""

import pytest
import torch

from hmtl.errors import ConfigError
from hmtl.mtl import cnn, mlp


def test_outputs():
    assert mlp(6, 3, hidden=2)(torch.zeros(4, 6)).shape == (4, 3)
    for d, shape in ((49, ()), (35, (5, 7)), (105, (3, 5, 7))):
        assert cnn(d, 3, channels=2, shape=shape)(torch.zeros(4, *(shape or (d,)))).shape == (4, 3)


@pytest.mark.parametrize(("d", "shape"), [(15, ()), (9, ()), (12, (3, 4)), (48, (16, 3, 1)), (16, (1, 1, 4, 4))])
def test_rows_that_are_not_images(d, shape):
    with pytest.raises(ConfigError, match="mlp"):
        cnn(d, 3, shape=shape)
