"""Products with constant sparse matrices, and their gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck

from tests.strategies import seeds
from tripq.sparse import SparseMatrix


def matrix_of(shape: tuple[int, int], n_entries: int, seed: int) -> SparseMatrix:
    """Entries at random places, some of them at the same."""
    rng = np.random.default_rng(seed)
    n = n_entries if min(shape) else 0
    rows, columns = (rng.integers(max(1, size), size=n) for size in shape)
    return SparseMatrix(shape, rows, columns, rng.normal(size=n))


def filled(matrix: SparseMatrix) -> np.ndarray:
    whole = np.zeros(matrix.shape)
    np.add.at(whole, (matrix.rows, matrix.columns), matrix.values)
    return whole


@given(shape=st.tuples(*[st.integers(0, 6)] * 2), n_entries=st.integers(0, 12), seed=seeds)
def test_the_product_is_that_of_the_filled_matrix(shape, n_entries, seed):
    matrix = matrix_of(shape, n_entries, seed)
    x = np.random.default_rng(seed).normal(size=shape[1])
    found = matrix.times(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(found, filled(matrix) @ x, rtol=1e-13, atol=1e-14)


@given(shape=st.tuples(*[st.integers(1, 5)] * 2), n_entries=st.integers(0, 12), seed=seeds)
def test_the_gradient_is_that_of_finite_differences(shape, n_entries, seed):
    matrix = matrix_of(shape, n_entries, seed)
    x = torch.from_numpy(np.random.default_rng(seed).normal(size=shape[1])).requires_grad_()
    assert gradcheck(matrix.times, (x,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_type_is_that_of_the_vector_and_entries_stay_exact(dtype):
    matrix = SparseMatrix((1, 1), np.array([0]), np.array([0]), np.array([1 / 3]))
    matrix.times(torch.ones(1))  # in float32 first
    assert matrix.times(torch.ones(1, dtype=dtype)) == torch.tensor(1 / 3, dtype=dtype)


def test_it_may_be_trained_through_after_it_served_inference():
    matrix = matrix_of((4, 3), 9, seed=0)
    with torch.inference_mode():
        matrix.times(torch.ones(3))
    x = torch.ones(3, requires_grad=True)
    matrix.times(x).sum().backward()
    assert x.grad is not None
