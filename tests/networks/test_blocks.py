"""Blocks give what the whole scan gives, in the order of the scan's voxels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

from tripq import PQGraph
from tripq.networks.blocks import (
    bytes_per_voxel,
    graph_radius,
    network_input,
    receptive_field,
    split_blocks,
)
from tripq.networks.conv import ConvSegmenter
from tripq.nn.batch_norm import BatchNorm, Normalization
from tripq.scans import DWI, DWIError
from tripq.tasks.lesions.segmentation import segment
from tripq.tasks.lesions.segmenter import LesionSegmenter

DIRECTIONS = np.concatenate([np.eye(3), [[0.6, 0.8, 0.0]]])
OBLIQUE = np.array([[1.9, 0.3, 0, -20], [-0.3, 1.9, 0, 5], [0, 0, 3.0, 9], [0, 0, 0, 1]])


def make_scan(mask: NDArray[np.bool_], b_value: float = 1000.0) -> DWI:
    rng = np.random.default_rng(0)
    n = np.count_nonzero(mask)
    length = np.sqrt(b_value / 1000.0)
    return DWI(
        signal=np.concatenate([np.ones((n, 1)), rng.random((n, 4))], axis=1, dtype=np.float32),
        b_values=np.array([0.0] + 4 * [b_value]),
        q=np.concatenate([np.zeros((1, 3)), length * DIRECTIONS]),
        mask=mask,
        affine=OBLIQUE,
        b0=np.ones(n, dtype=np.float32),
    )


def head() -> NDArray[np.bool_]:
    """An ellipsoid with a hole that touches a face of its volume."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in (13, 16, 11)), indexing="ij")
    radius = x**2 + y**2 + (z + 0.4) ** 2
    return (radius < 1) & (radius > 0.05)


def networks(normalize: Normalization = "local") -> list[nn.Module]:
    torch.manual_seed(0)
    equivariant = LesionSegmenter(
        p_radius=3.1,
        q_features="4x0e+2x2e",
        p_features="3x0e+2x1o",
        n_p_layers=1,
        normalize=normalize,
    )
    return [equivariant, ConvSegmenter(5, widths=(4, 3))]


@pytest.mark.parametrize(
    "network", [*networks(), networks("scan")[0]], ids=["local", "convolutions", "scan"]
)
@pytest.mark.parametrize(
    ("max_voxels", "axes"),
    [
        (500, OBLIQUE),
        (500, OBLIQUE @ [[1, 0.1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
        *(pytest.param(n, OBLIQUE, marks=pytest.mark.exhaustive) for n in (300, 400)),
    ],
)
def test_blocks_equal_the_whole(
    network: nn.Module, max_voxels: int, axes: NDArray[np.float64]
) -> None:
    network.eval()
    dwi = replace(make_scan(head()), affine=axes)
    halo = receptive_field(network, dwi.affine)
    assert len(split_blocks(dwi.mask, halo, max_voxels)) > 2

    graph = PQGraph.from_grid(dwi.mask, dwi.affine, dwi.q, max(graph_radius(network), 1.0))
    with torch.inference_mode():
        whole = torch.sigmoid(network(torch.from_numpy(dwi.signal), graph)).numpy()
    assert whole.std() > 1e-3
    np.testing.assert_allclose(segment(network, dwi, max_voxels=max_voxels), whole, atol=1e-6)


def test_blocks_have_the_statistics_of_the_whole_under_autocast() -> None:
    """In double precision, so that a split changes no more than the rounding of the layers."""
    network, dwi = networks()[0].eval(), make_scan(head())
    norm = network.blocks[0].norm
    assert isinstance(norm, BatchNorm)
    graph = PQGraph.from_grid(dwi.mask, dwi.affine, dwi.q, 3.1)
    x = torch.randn(len(dwi.b0), norm.irreps.dim).bfloat16()
    expected, _ = norm.contributions(x, graph)
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = norm.contributions(x, graph)
    assert found.equal(expected)


def test_a_network_reads_the_contrast_of_b0_if_it_asks_for_it() -> None:
    """The contrast is that of the whole scan in every block, and has no scale."""
    torch.manual_seed(0)
    reads, blind = (
        LesionSegmenter(
            p_radius=3.1,
            q_features="4x0e+2x2e",
            p_features="3x0e+2x1o",
            n_p_layers=1,
            normalize="none",
            b0_contrast=b0_contrast,
        ).eval()
        for b0_contrast in (True, False)
    )
    blind.load_state_dict(reads.state_dict())
    made = make_scan(head())
    dwi = replace(made, b0=np.linspace(200, 600, len(made.b0), dtype=np.float32))
    shown = replace(dwi, signal=network_input(reads, dwi))
    np.testing.assert_array_equal(shown.signal[:, 0], dwi.b0 / np.median(dwi.b0))
    np.testing.assert_array_equal(network_input(blind, dwi), made.signal)

    expected = segment(blind, shown)
    np.testing.assert_allclose(segment(reads, dwi, max_voxels=500), expected, atol=1e-6)
    np.testing.assert_allclose(segment(reads, replace(dwi, b0=7 * dwi.b0)), expected, atol=1e-6)
    assert np.abs(segment(reads, made) - expected).max() > 1e-3

    class Wrapper(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, signal: torch.Tensor, graph: PQGraph) -> torch.Tensor:
            return self.network(signal, graph)  # type: ignore[no-any-return]

    np.testing.assert_allclose(segment(Wrapper(reads).eval(), dwi), expected, atol=1e-6)


def test_a_narrower_halo_would_not_do() -> None:
    """The receptive field is no wider than it must be: a voxel at its edge is seen."""
    network = networks("batch")[0].eval()
    mask = np.ones((11, 11, 9), dtype=bool)
    reach = receptive_field(network, OBLIQUE)
    dwi = make_scan(mask)
    before = dwi.volume(segment(network, dwi))
    dwi.signal[np.ravel_multi_index((5, 5, 4), mask.shape)] += 1.0
    changed = np.argwhere(np.abs(dwi.volume(segment(network, dwi)) - before) > 0)
    np.testing.assert_array_equal(np.abs(changed - [5, 5, 4]).max(axis=0), reach)


@given(
    st.integers(0, 2**32 - 1),
    st.tuples(*3 * [st.integers(0, 3)]),
    st.integers(1, 200),
)
def test_every_voxel_is_wanted_once(seed: int, halo: tuple[int, ...], max_voxels: int) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random(tuple(rng.integers(1, 9, size=3))) < rng.random()
    times = np.zeros(mask.shape, dtype=int)
    for block in split_blocks(mask, np.array(halo), max_voxels):
        times[block.inner] += 1
        for inner, outer, reach, length in zip(
            block.inner, block.outer, halo, mask.shape, strict=True
        ):
            assert outer.start == max(0, inner.start - reach)
            assert outer.stop == min(length, inner.stop + reach)
        one_voxel = all(axis.stop - axis.start == 1 for axis in block.inner)
        assert one_voxel or mask[block.outer].sum() <= max_voxels
    assert (times[mask] == 1).all()
    assert times.max(initial=0) <= 1


def test_blocks_are_as_large_as_a_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    network, dwi = networks()[1].eval(), make_scan(head())

    def blocks(memory: float) -> int:
        monkeypatch.setattr("tripq.networks.blocks.BLOCK_BYTES", memory)
        done: list[int] = []
        segment(network, dwi, report=lambda n, _: done.append(n))
        return len(done)

    assert blocks(1e9) == 1
    assert blocks(400 * bytes_per_voxel(network, 5)) > 2
    assert blocks(1) == len(dwi.b0)  # never less than a voxel


def test_progress_counts_the_voxels() -> None:
    dwi = make_scan(head())
    seen: list[tuple[int, int]] = []
    segment(networks()[1].eval(), dwi, max_voxels=400, report=lambda *counts: seen.append(counts))
    assert len(seen) > 2
    assert seen[-1] == (len(dwi.b0), len(dwi.b0))
    assert seen == sorted(seen)


def test_what_cannot_be_segmented_is_refused() -> None:
    equivariant, _ = networks()
    with pytest.raises(ValueError, match=r"call network\.eval\(\) first"):
        segment(equivariant.train(), make_scan(head()))
    with pytest.raises(DWIError, match="b-values up to 5000 s/mm2, but the network takes no more "):
        segment(equivariant.eval(), make_scan(head(), b_value=5000.0))
    with pytest.raises(ValueError, match="made for 7 directions"):
        segment(ConvSegmenter(7, widths=(2,)).eval(), make_scan(head()))
