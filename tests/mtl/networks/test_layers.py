"""Which networks are read as layers, and which are left to torch."""

from functools import partial

import pytest
from torch import nn

from hmtl.mtl.networks.layers import layers_of

D, C = 7, 3


def test_rows_with_a_shape():
    assert layers_of(nn.Sequential(nn.Flatten(), nn.Linear(16, C)), (4, 4))
    assert layers_of(nn.Sequential(nn.Linear(4, 4), nn.Flatten(), nn.Linear(16, C)), (4, 4)) == ()
    assert layers_of(nn.Sequential(nn.Flatten(2), nn.Linear(16, C)), (4, 4)) == ()


@pytest.mark.filterwarnings("ignore:.*weight_norm")
@pytest.mark.parametrize("change", [nn.utils.weight_norm,
                                    lambda m: m.register_forward_hook(lambda module, x, out: 2 * out),
                                    lambda m: setattr(m, "forward", partial(nn.functional.gelu))])  # fmt: skip
def test_a_module_that_does_something_else_than_its_type(change):
    module = nn.Sequential(nn.Linear(D, D), nn.ReLU(), nn.Linear(D, C))
    assert layers_of(module, (D,))
    change(module[0])
    assert layers_of(module, (D,)) == ()
