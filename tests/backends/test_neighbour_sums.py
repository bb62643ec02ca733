"""The p-stage kernels against a sum written out edge by edge."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tripq.backends.neighbour_sums import aggregate_on_edges, aggregate_on_grid

seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(1, 4)


def normal(rng, *shape):
    return torch.from_numpy(rng.normal(size=shape))


def random_table(rng, n_voxels, n_types):
    """Each type joins every voxel with at most one other, as an offset on a grid does."""
    table = np.full((n_voxels, n_types), n_voxels)
    for t in range(n_types):
        joined = rng.random(n_voxels) < 0.7
        table[joined, t] = rng.permutation(n_voxels)[joined]
    return torch.from_numpy(table)


def transpose(table):
    transposed = torch.full_like(table, len(table))
    for v, row in enumerate(table.tolist()):
        for t, u in enumerate(row):
            if u < len(table):
                transposed[u, t] = v
    return transposed


def edges_of(table):
    """(dst, src, type) of a table."""
    dst, type_ = torch.nonzero(table < len(table), as_tuple=True)
    return dst, table[dst, type_], type_


def naive(z, m, dst, src, type_):
    out = z.new_zeros(len(z), z.shape[1], m.shape[2])
    for v, u, t in zip(dst.tolist(), src.tolist(), type_.tolist(), strict=True):
        for n in range(z.shape[1]):
            out[v, n] += z[u, n] @ m[t]
    return out


# More input than output components multiply before they gather, fewer gather first.
widths = pytest.mark.parametrize(("n_in", "n_out"), [(1, 3), (4, 2), (5, 2), (7, 1)])


@widths
@given(seed=seeds, n_voxels=sizes, n_types=sizes, n=sizes)
def test_grid_is_the_sum_over_its_edges(n_in, n_out, seed, n_voxels, n_types, n):
    rng = np.random.default_rng(seed)
    table = random_table(rng, n_voxels, n_types)
    z, m = normal(rng, n_voxels, n, n_in), normal(rng, n_types, n_in, n_out)
    found = aggregate_on_grid(z, m, table, transpose(table))
    torch.testing.assert_close(found, naive(z, m, *edges_of(table)), rtol=0, atol=1e-13)


@widths
@given(seed=seeds, n_voxels=sizes, n_edges=st.integers(0, 9), n=sizes)
def test_a_list_of_edges_may_repeat_and_share_types(n_in, n_out, seed, n_voxels, n_edges, n):
    rng = np.random.default_rng(seed)
    dst, src = torch.from_numpy(rng.integers(0, n_voxels, (2, n_edges)))
    type_ = torch.from_numpy(rng.integers(0, 3, n_edges))
    z, m = normal(rng, n_voxels, n, n_in), normal(rng, 3, n_in, n_out)
    found = aggregate_on_edges(z, m, dst, src, type_)
    torch.testing.assert_close(found, naive(z, m, dst, src, type_), rtol=0, atol=1e-13)


@widths
def test_gradients_of_both(n_in, n_out):
    rng = np.random.default_rng(0)
    table = random_table(rng, 4, 3)
    z = normal(rng, 4, 2, n_in).requires_grad_()
    m = normal(rng, 3, n_in, n_out).requires_grad_()
    transposed, edges = transpose(table), edges_of(table)
    assert torch.autograd.gradcheck(lambda z, m: aggregate_on_grid(z, m, table, transposed), (z, m))
    assert torch.autograd.gradcheck(lambda z, m: aggregate_on_edges(z, m, *edges), (z, m))


@widths
@pytest.mark.parametrize("needs", ["z", "m"])
def test_only_the_gradient_that_is_asked_for(n_in, n_out, needs):
    rng = np.random.default_rng(1)
    table = random_table(rng, 3, 2)
    z, m = normal(rng, 3, 2, n_in), normal(rng, 2, n_in, n_out)
    leaf = {"z": z, "m": m}[needs].requires_grad_()
    expected = torch.autograd.grad(naive(z, m, *edges_of(table)).square().sum(), leaf)
    on_grid = aggregate_on_grid(z, m, table, transpose(table)).square().sum()
    on_edges = aggregate_on_edges(z, m, *edges_of(table)).square().sum()
    torch.testing.assert_close(torch.autograd.grad(on_grid, leaf), expected)
    torch.testing.assert_close(torch.autograd.grad(on_edges, leaf), expected)


@widths
def test_a_small_budget_changes_nothing(n_in, n_out):
    rng = np.random.default_rng(2)
    table = random_table(rng, 5, 3)
    z = normal(rng, 5, 3, n_in).requires_grad_()
    m = normal(rng, 3, n_in, n_out).requires_grad_()

    def outputs(budget):
        results = []
        for out in (
            aggregate_on_grid(z, m, table, transpose(table), budget),
            aggregate_on_edges(z, m, *edges_of(table), budget),
        ):
            results += [out, *torch.autograd.grad(out.square().sum(), (z, m))]
        return results

    for a, b in zip(outputs(1), outputs(1 << 20), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@widths
@pytest.mark.parametrize(("n_voxels", "n", "n_types"), [(0, 2, 3), (3, 0, 2), (3, 2, 0)])
def test_nothing_to_sum_is_zero(n_in, n_out, n_voxels, n, n_types):
    z = torch.ones(n_voxels, n, n_in, requires_grad=True)
    m = torch.ones(n_types, n_in, n_out, requires_grad=True)
    table = torch.full((n_voxels, n_types), n_voxels)
    none = torch.empty(0, dtype=torch.int64)
    for out in (
        aggregate_on_grid(z, m, table, table),
        aggregate_on_edges(z, m, none, none, none),
    ):
        assert out.equal(torch.zeros(n_voxels, n, n_out))
        for leaf, grad in zip((z, m), torch.autograd.grad(out.sum(), (z, m)), strict=True):
            assert grad.equal(torch.zeros_like(leaf))


@widths
def test_strided_inputs_and_gradients(n_in, n_out):
    rng = np.random.default_rng(3)
    table = random_table(rng, 4, 3)
    z = normal(rng, n_in, 4, 2).permute(1, 2, 0).requires_grad_()
    m = normal(rng, n_out, n_in, 3).permute(2, 1, 0).requires_grad_()
    direction = normal(rng, 2, 4, n_out).transpose(0, 1)
    expected = naive(z, m, *edges_of(table))
    found = aggregate_on_grid(z, m, table, transpose(table))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad(found, (z, m), direction),
        torch.autograd.grad(expected, (z, m), direction),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_sum_has_the_type_of_its_terms(dtype):
    z, m = torch.ones(2, 1, 1, dtype=dtype), torch.ones(1, 1, 1, dtype=dtype)
    table = torch.tensor([[1], [2]])
    assert aggregate_on_grid(z, m, table, transpose(table)).dtype == dtype
    assert aggregate_on_edges(z, m, *edges_of(table)).dtype == dtype
