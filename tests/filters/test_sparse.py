"""Products with constant sparse matrices, and their gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from tests.strategies import seeds
from tripq.filters.sparse import SparseMatrix


def matrices(shape: tuple[int, int], n_entries: int, seed: int) -> tuple[SparseMatrix, np.ndarray]:
    """Entries at random places, some of them at the same; and the matrix filled with zeros."""
    rng = np.random.default_rng(seed)
    n = n_entries if min(shape) else 0
    rows, columns = (rng.integers(max(1, size), size=n) for size in shape)
    values = rng.normal(size=n)
    filled = np.zeros(shape)
    np.add.at(filled, (rows, columns), values)
    return SparseMatrix.of(shape, rows, columns, values), filled


@given(shape=st.tuples(*[st.integers(0, 6)] * 2), n_entries=st.integers(0, 12), seed=seeds)
def test_the_product_is_that_of_the_filled_matrix(shape, n_entries, seed):
    matrix, filled = matrices(shape, n_entries, seed)
    x = np.random.default_rng(seed).normal(size=shape[1])
    found = matrix.times(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(found, filled @ x, rtol=1e-13, atol=1e-14)
    y = np.random.default_rng(seed).normal(size=shape[0])
    found = matrix.transposed.times(torch.from_numpy(y)).numpy()
    np.testing.assert_allclose(found, filled.T @ y, rtol=1e-13, atol=1e-14)


@given(shape=st.tuples(*[st.integers(1, 5)] * 2), n_entries=st.integers(0, 12), seed=seeds)
def test_derivatives_are_those_of_finite_differences(shape, n_entries, seed):
    matrix, _ = matrices(shape, n_entries, seed)
    x = torch.from_numpy(np.random.default_rng(seed).normal(size=shape[1])).requires_grad_()
    assert gradcheck(matrix.times, (x,), check_forward_ad=True)
    assert gradgradcheck(lambda x: matrix.times(x.square()), (x,))
    by_transform = torch.func.grad(lambda x: matrix.times(x).square().sum())(x.detach())
    (expected,) = torch.autograd.grad(matrix.times(x).square().sum(), x)
    assert by_transform.equal(expected)


def test_what_is_no_number_stays_in_the_rows_that_see_it():
    rows, columns = np.array([0, 0, 0, 1]), np.array([0, 1, 2, 3])
    matrix = SparseMatrix.of((2, 4), rows, columns, np.ones(4))
    found = matrix.times(torch.tensor([torch.inf, 1.0, 1.0, 5.0]))
    assert found[1] == 5


def test_a_matrix_takes_no_more_than_twice_its_entries():
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 100, size=200)
    rows = np.repeat(np.arange(200), counts)
    matrix = SparseMatrix.of((200, 50), rows, rng.integers(50, size=len(rows)), np.ones(len(rows)))
    for gather in (matrix.by_row, matrix.by_column):
        assert sum(factor.size for _, _, factor in gather.blocks) < 2 * len(rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_type_is_that_of_the_vector_and_entries_stay_exact(dtype):
    matrix = SparseMatrix.of((1, 1), np.array([0]), np.array([0]), np.array([1 / 3]))
    matrix.times(torch.ones(1))  # in float32 first
    assert matrix.times(torch.ones(1, dtype=dtype)) == torch.tensor(1 / 3, dtype=dtype)


def test_it_may_be_trained_through_after_it_served_inference():
    matrix, _ = matrices((4, 3), 9, seed=0)
    with torch.inference_mode():
        matrix.times(torch.ones(3))
    x = torch.ones(3, requires_grad=True)
    matrix.times(x).sum().backward()
    assert x.grad is not None
