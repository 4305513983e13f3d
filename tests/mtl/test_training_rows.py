"""Padded rows: one user's rows as views, and Gram matrices that are computed once."""

import dataclasses

import numpy as np
import torch


def test_rows_of_one_user(random_problem):
    case = random_problem(3)
    whole = case.problem.rows
    for k in range(case.K):
        rows = whole.of(k)
        np.testing.assert_array_equal(rows.X[0].numpy(), case.X[k])
        np.testing.assert_array_equal(rows.y[0].numpy(), case.y[k])
        assert rows.counts == (len(case.y[k]),)
        assert rows.X.untyped_storage().data_ptr() == whole.X.untyped_storage().data_ptr()


def test_the_gram_matrix_is_computed_once_for_all_that_share_the_rows(random_problem):
    rows = random_problem(3).problem.rows
    assert rows.gram() is dataclasses.replace(rows, y=-rows.y).gram()
    torch.testing.assert_close(rows.of(1).gram()[0], rows.X[1, : rows.counts[1]] @ rows.X[1, : rows.counts[1]].T)
    assert rows.of(1).gram().untyped_storage().data_ptr() == rows.gram().untyped_storage().data_ptr()
