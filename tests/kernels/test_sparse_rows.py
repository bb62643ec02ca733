"""Rows of a sparse matrix: the kernel against the blocks of rows in torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.kernels.ahead_of_time import TARGETS, compile_kernel
from tripq.filters.sparse import SparseMatrix
from tripq.kernels.sparse_rows import sparse_rows, sparse_rows_twin


def test_a_row_without_entries_is_zero():
    begins, columns = torch.tensor([0, 0, 2, 2]), torch.tensor([1, 1], dtype=torch.int32)
    out = sparse_rows(begins, columns, torch.tensor([2.0, 3.0]), torch.tensor([7.0, 1.0]))
    assert out.tolist() == [0, 5, 0]


def test_it_is_an_operator():
    begins, columns = torch.tensor([0, 0, 2]), torch.tensor([1, 0], dtype=torch.int32)
    inputs = begins, columns, torch.ones(2), torch.ones(2)
    torch.library.opcheck(torch.ops.tripq.sparse_rows.default, inputs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_products_and_gradients_by_the_kernel(dtype, triton_device, poisoned):
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 9, size=300)
    rows = np.repeat(np.arange(300), counts)
    columns, values = rng.integers(40, size=len(rows)), rng.normal(size=len(rows))
    matrix = SparseMatrix.of((300, 40), rows, columns, values)
    filled = np.zeros((300, 40))
    np.add.at(filled, (rows, columns), values)
    x = torch.from_numpy(rng.normal(size=40)).to(triton_device, dtype).requires_grad_()
    grad = torch.from_numpy(rng.normal(size=300)).to(triton_device, dtype)
    product = matrix.times(x)
    product.backward(grad)
    exact = torch.from_numpy(filled).to(triton_device)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    for found, expected in (
        (product.detach(), exact @ x.detach().double()),
        (x.grad, exact.T @ grad.double()),
    ):
        torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


def test_no_rows_and_no_entries(triton_device):
    none = torch.zeros(0, dtype=torch.int32, device=triton_device)
    for begins in (torch.tensor([0]), torch.tensor([0, 0, 0])):
        inputs = begins.to(triton_device), none, none.float(), torch.ones(2, device=triton_device)
        assert torch.equal(sparse_rows(*inputs), sparse_rows_twin(*inputs))


@pytest.mark.parametrize("target", TARGETS)
def test_the_kernel_compiles_without_spilling(target):
    from tripq.kernels.sparse_rows_triton import sparse_rows_kernel

    types = {"begins": "*i64", "columns": "*i32", "values": "*fp32", "x": "*fp32"}
    types |= {"out": "*fp32", "n_rows": "i32"}
    resources = compile_kernel(sparse_rows_kernel, types, {"ROWS": 128}, target)
    print("sparse_rows_kernel", target, resources)
    assert resources.spilled == 0
