"""Graphs, layers and networks of the workloads."""

from __future__ import annotations

import numpy as np
import torch
from e3nn import o3
from numpy.typing import NDArray
from torch import nn
from workloads import IRREPS, VOXEL, Box, Brain, Cloud, Step, WholeBrain

from tripq import PQGraph, PQTensorFieldLayer, Radial
from tripq.domain.nodes import NodeSpace
from tripq.domain.qspace import QSpace
from tripq.networks.conv import ConvSegmenter
from tripq.nn import scale_initial_weights
from tripq.scans import DWI
from tripq.scans.scan import B_REFERENCE
from tripq.simulate import spread_directions
from tripq.tasks.lesions.segmenter import LesionSegmenter

LayerWorkload = Box | Brain | Cloud


def directions(shells: tuple[int, ...]) -> NDArray[np.float64]:
    """q-vectors (Q, 3): the shells at b = 1000, 2000, ..., a shell of 1 at 0."""
    b_values = np.cumsum([n > 1 for n in shells])
    return np.concatenate(
        [
            np.sqrt(b) * (spread_directions(n) if n > 1 else np.zeros((1, 3)))
            for n, b in zip(shells, b_values, strict=True)
        ]
    )


def ellipsoid(shape: tuple[int, int, int], voxels: int) -> NDArray[np.bool_]:
    """The `voxels` of a box that are nearest to its middle, lengths relative to its sides."""
    centred = [(np.arange(n) - (n - 1) / 2) / n for n in shape]
    distance = sum(x**2 for x in np.meshgrid(*centred, indexing="ij"))
    mask = np.zeros(shape, dtype=bool)
    mask.ravel()[np.argsort(distance, axis=None, kind="stable")[:voxels]] = True
    return mask


def graph_of(workload: LayerWorkload) -> PQGraph:
    """The domain of a layer."""
    if isinstance(workload, Cloud):
        return _cloud(workload)
    if isinstance(workload, Brain):
        mask = ellipsoid(workload.shape, workload.voxels)
    else:
        mask = ellipsoid((workload.side,) * 3, round(workload.fill * workload.side**3))
    q = directions(workload.shells)
    return PQGraph.from_grid(mask, np.diag([VOXEL] * 3 + [1.0]), q, workload.radius * VOXEL)


def _cloud(workload: Cloud) -> PQGraph:
    """Points of one voxel's density at random, directions at random."""
    rng = np.random.default_rng(0)
    points = rng.uniform(0, VOXEL * workload.voxels ** (1 / 3), (workload.voxels, 3))
    q = rng.normal(size=(workload.voxels, workload.directions, 3))
    q /= np.linalg.norm(q, axis=-1, keepdims=True)
    p = np.repeat(points, workload.directions, axis=0)
    return PQGraph.from_nodes(p, q.reshape(-1, 3), _cloud_radius(workload))


def _cloud_radius(workload: Cloud) -> float:
    """Of a ball (mm) with so many voxels in it."""
    return VOXEL * (3 * workload.neighbours / (4 * np.pi)) ** (1 / 3)


def layer_of(workload: LayerWorkload, backend: str) -> PQTensorFieldLayer:
    """The layer, with the same weights whatever the back end."""
    torch.manual_seed(0)
    if isinstance(workload, Brain) and workload.paper:
        network = LesionSegmenter.paper(p_radius=workload.radius * VOXEL)
        (layer,) = with_backend(network.pq_block.layer, backend)
        return layer
    cloud = isinstance(workload, Cloud)
    return PQTensorFieldLayer(
        IRREPS,
        IRREPS,
        _cloud_radius(workload) if cloud else workload.radius * VOXEL,
        selection="tp1",
        lmax_p=workload.lmax,
        lmax_q=workload.lmax,
        p_radial=Radial(number=3),
        q_radial=Radial(number=1 if cloud else len(workload.shells)),
        quadrature="sum",
        backend=backend,  # type: ignore[arg-type]
        memory_budget=_budget(backend),
    )


def _budget(backend: str) -> int | None:
    """The default, but that the dense filter is built once and held, as the authors hold it."""
    return 1 << 40 if backend == "dense" else None


def with_backend(network: nn.Module, backend: str) -> list[PQTensorFieldLayer]:
    """The layers in a network, which from now on use `backend`."""
    layers = [m for m in network.modules() if isinstance(m, PQTensorFieldLayer)]
    for layer in layers:
        layer.backend = backend  # type: ignore[assignment]
        layer.memory_budget = _budget(backend)
    return layers


def features(graph: PQGraph, dim: int) -> torch.Tensor:
    """Random features (V, Q, dim), or (N, dim) on nodes, float64 on the CPU."""
    q = graph.scans[0].q
    rows = (len(q.q),) if isinstance(q, NodeSpace) else (graph.n_voxels, len(q.q_in))
    return torch.randn(*rows, dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def sizes_of(graph: PQGraph, layer: PQTensorFieldLayer) -> dict[str, float]:
    """How large a problem it is."""
    (scan,) = graph.scans
    sizes = {"voxels": graph.n_voxels, "neighbours": scan.edges.n_edges / graph.n_voxels}
    if isinstance(scan.q, QSpace):
        sizes["directions"] = len(scan.q.q_in)
        sizes["neighbours"] = len(scan.edges.offsets)
        sizes["edges"] = scan.edges.n_edges * scan.q.weights.numel()
    else:
        sizes["directions"] = len(scan.q.q) / graph.n_voxels
        sizes["edges"] = len(scan.q.edges.dst)
    orders = [max(path.l_p, path.l_q) for path in layer.paths]
    return {**sizes, "paths": len(layer.paths), "lmax": max(orders)}


# -- networks ------------------------------------------------------------------------------------


def segmenter(backend: str) -> LesionSegmenter:
    """The default network but for its norms, its first weights scaled: logits of order 1.

    Batch norms have fixed statistics when a network is applied.  Those of surroundings, the
    default, would not be the same in the part of the scan from which a logit is checked.
    """
    torch.manual_seed(0)
    network = LesionSegmenter(normalize="batch")
    q = directions((1, 32))
    affine = np.diag([VOXEL, VOXEL, VOXEL, 1.0])
    graph = PQGraph.from_grid(np.ones((6, 6, 6)), affine, q, network.p_radius)
    scale_initial_weights(network, torch.rand(6**3, len(q)), graph)
    with_backend(network, backend)
    return network


def conv_widths() -> tuple[int, ...]:
    """How many components the layers of the default network have, but for the last."""
    like = LesionSegmenter()
    first, inner = o3.Irreps(like.q_features).dim, o3.Irreps(like.p_features).dim
    return (first, *[inner] * like.n_p_layers)


def conv_network(n_directions: int, widths: tuple[int, ...]) -> ConvSegmenter:
    """Convolutions over the same neighbours."""
    torch.manual_seed(0)
    return ConvSegmenter(n_directions, widths=widths)


def scan_of(workload: Step | WholeBrain) -> DWI:
    """A scan of noise: the box of a training step, or a whole brain."""
    if isinstance(workload, Step):
        mask, voxel = np.ones((workload.side,) * 3, dtype=bool), VOXEL
    else:
        side = (workload.voxels * 6 / np.pi / (6 * 7 * 6)) ** (1 / 3)  # axes as 6 : 7 : 6
        shape = tuple(int(np.ceil(axis * side)) + 1 for axis in (6, 7, 6))
        mask, voxel = ellipsoid(shape, workload.voxels), workload.voxel  # type: ignore[arg-type]
    q = directions(workload.shells)
    rng = np.random.default_rng(0)
    signal = rng.random((np.count_nonzero(mask), len(q)), dtype=np.float32)
    return DWI(
        signal,
        B_REFERENCE * (q**2).sum(axis=1),
        q,
        mask,
        np.diag([voxel] * 3 + [1.0]),
        np.ones(len(signal), dtype=np.float32),
    )
