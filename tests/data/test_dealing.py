"""Tasks of a partition: rows keep their labels, whatever the labels are."""

import numpy as np
import pytest

from hmtl.data import Dirichlet, Pathological
from hmtl.data.dealing import deal
from hmtl.data.splitting import Splitting
from hmtl.errors import ConfigError


@pytest.mark.parametrize("C", [2, 5])
def test_rows_keep_their_labels(C):
    labels = np.array([f"class {c}" for c in range(C)])[np.random.default_rng(0).integers(C, size=300)]
    x = np.arange(300.0)
    tasks = deal(lambda rows: x[rows, None, None] + np.zeros((2, 3)), labels, 4, Dirichlet(20), Splitting(0.25, 7))
    dealt = []
    for task in tasks:
        assert task.classes == (C if C > 2 else None)
        for rows, y in ((task.x_train, task.y_train), (task.x_test, task.y_test)):
            assert rows.shape[1:] == (2, 3)
            numbers = rows[:, 0, 0].long().numpy()
            dealt += numbers.tolist()
            classes = [int(labels[i].split()[1]) for i in numbers]
            assert y.tolist() == (classes if C > 2 else [2 * c - 1 for c in classes])
    assert sorted(dealt) == list(range(300))
    assert [task.name for task in tasks] == ["user 0", "user 1", "user 2", "user 3"]
    alone = deal(lambda rows: x[rows, None], labels, C, Pathological(1), Splitting(0.25, 7))
    assert [len(set(task.y_train.tolist())) for task in alone] == [1] * C
    with pytest.raises(ConfigError, match="K is not set"):
        deal(lambda rows: x[rows, None], labels, None, Pathological(1), Splitting(0.25, 7))
