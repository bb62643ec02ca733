"""A trained network for one gradient table and one grid, as a program that needs no tripq.

With fixed directions and voxel axes, a layer whose output has no directions is one matrix for each
neighbour.  The network is then a sequence of gathers and matrix products, which ``torch.export``
accepts: the program runs wherever torch does, or can be compiled ahead of time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export
from torch.nn import functional as F

from tripq.backends.dense import DenseFilter
from tripq.domain.graph import PQGraph
from tripq.domain.qspace import QSpace
from tripq.domain.voxels import neighbour_steps
from tripq.domain.window import GridWindow, windows_of
from tripq.filters.filter import PQFilter
from tripq.kernels.launch import plain_torch
from tripq.networks.blocks import graph_radius, instance_norms
from tripq.nn.layer import PQTensorFieldLayer


def export_network(network: nn.Module, q: ArrayLike | Tensor, affine: ArrayLike) -> ExportedProgram:
    """A network as a program for scans with these directions and these voxels.

    Parameters
    ----------
    network : Module
        Trained; it is not changed.  ``network(signal, graph)`` gives a row for every voxel, as
        `tripq.networks.encoder.VoxelNetwork`, or an encoder with any head, does.  None of its
        layers has directions in the output, and nothing but its layers uses the graph.
    q : array of shape (Q, 3)
        q-vectors in world axes, ``|q| = sqrt(b / b_ref)``: `tripq.DWI.q`.
    affine : array of shape (4, 4)
        Voxel indices to mm in world axes; where the first voxel lies makes no difference.

    Returns
    -------
    ExportedProgram
        ``program.module()(signal, *tables)`` gives the output of the network, (V, ...), for any
        mask of V voxels: from the signal (V, Q) divided by b0, float32, and from `voxel_tables` of
        the mask.  Statistics of surroundings take a volume of double precision for all features at
        once: some GB for voxels of 1 mm.

    Raises
    ------
    ValueError
        If q or affine make no sense, or a network that normalises over the surroundings of voxels
        is exported for voxels whose axes are not orthogonal.
    TypeError
        If a layer has directions in its output or a self-interaction, or another part of the
        network uses the graph.

    Examples
    --------
    >>> from tripq.networks import VoxelNetwork
    >>> q = np.concatenate([np.zeros((1, 3)), np.eye(3)])
    >>> affine = np.diag([2.0, 2, 2, 1])
    >>> options = {"q_features": "4x0e + 2x2e", "p_features": "4x0e", "n_p_layers": 1}
    >>> network = VoxelNetwork("1x0e + 1x2e", **options)
    >>> program = export_network(network, q, affine)
    >>> mask = np.ones((5, 4, 3), dtype=bool)
    >>> tables = voxel_tables(network, mask, affine)
    >>> program.module()(torch.rand(60, 4), *tables).shape
    torch.Size([60, 6])
    """
    for name, module in network.named_modules():
        if isinstance(module, PQTensorFieldLayer):
            _check_layer(module, f"{type(network).__name__}{name and f': its layer {name}'}")
    one_voxel = PQGraph.from_grid(np.ones((1, 1, 1)), affine, q, graph_radius(network))
    fixed = _Fixed(network, one_voxel).eval()
    n_directions = len(_q_space(one_voxel).q_in)
    tables = voxel_tables(network, np.ones((3, 4, 5)), affine)
    signal = torch.rand(len(tables[0]), n_directions, device=one_voxel.device)
    voxels = Dim("voxels", min=1)
    of_axes = [{0: Dim(f"length_{axis}"), 1: Dim(f"rank_{axis}")} for axis in "xyz"]
    sizes = [{0: voxels}, {0: voxels}, *of_axes][: len(tables)]
    with torch.no_grad(), plain_torch():
        return export(fixed, (signal, *tables), dynamic_shapes=({0: voxels}, tuple(sizes)))


def voxel_tables(network: nn.Module, mask: ArrayLike, affine: ArrayLike) -> tuple[Tensor, ...]:
    """What an exported program reads beside the signal, for the V voxels of a mask.

    Parameters
    ----------
    network : Module
        The network that was exported.
    mask : array of shape (X, Y, Z)
        Voxels are in the order of ``np.argwhere(mask)``.
    affine : array of shape (4, 4)
        That of the export, but for its origin.

    Returns
    -------
    tuple of Tensors
        The neighbours of every voxel, (V, T), int64, with V where there is none.  For a network
        that normalises over the surroundings of voxels also the places of the voxels in the box
        around them, (V,), int64, and a matrix for each axis; see `tripq.domain.window`.

    Raises
    ------
    ValueError
        If mask or affine are not as `PQGraph.from_grid` says; if there are surroundings, and the
        axes of the voxels are not orthogonal or the mask has none.
    """
    given = np.asarray(mask) != 0
    axes = np.asarray(affine, dtype=np.float64)[:3, :3]
    (scan,) = PQGraph.from_grid(given, affine, None, radius=0.0).scans
    assert scan.grid is not None
    neighbours = scan.grid.neighbours(torch.from_numpy(_steps(network, axes)))
    windows = {norm.window for norm in instance_norms(network) if math.isfinite(norm.window)}
    if not windows:
        return (neighbours,)
    if not given.any():
        raise ValueError("the mask has no voxel")
    (window,) = windows_of(scan, *windows)
    if not isinstance(window, GridWindow):
        raise ValueError(
            "the axes of the voxels are not orthogonal: only networks that do not normalise over "
            "the surroundings of voxels can be exported for them. Resample the scans, or train "
            'with normalize="scan".'
        )
    return neighbours, window.places, *window.factors


def _steps(network: nn.Module, axes: NDArray[np.float64]) -> NDArray[np.int64]:
    """The index offsets (T, 3) of the neighbours of all layers, in lexicographic order."""
    layers = [m for m in network.modules() if isinstance(m, PQTensorFieldLayer)]
    itself = np.zeros((1, 3), np.int64)
    steps = [neighbour_steps(axes, layer.p_radius, layer.quadrature) for layer in layers]
    return np.unique(np.concatenate([itself, *steps]), axis=0)


def _check_layer(layer: PQTensorFieldLayer, which: str) -> None:
    if layer.q_out is not None:
        raise TypeError(
            f"{which} has an output for every direction; only networks whose layers give one "
            "output for each voxel (q_out=None) can be exported."
        )
    if layer.self_interaction is not None:
        raise TypeError(f"{which} has a self-interaction; such networks cannot be exported.")


@dataclass(frozen=True, eq=False)
class _Table:
    """The graph of one scan in an exported program."""

    neighbours: Tensor
    window: GridWindow | None = None

    merged = (None,)

    def filled(self, x: Tensor) -> None:
        """All rows are."""

    def voxels_of_rows(self, number: int) -> None:
        """Every row is a voxel."""

    def means_around(self, sums: Tensor, numbers: Tensor, sigma: float) -> Tensor:
        """As of a graph, without a limit of memory."""
        assert self.window is not None
        sums, numbers = map(self.window.sums_in_one_volume, (sums, numbers[:, None]))
        return sums / numbers

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)  # of Python's own protocols
        raise TypeError(
            f"the network uses graph.{name}, which an exported program does not have: only its "
            "tensor field layers may use the graph."
        )


class _Fixed(nn.Module):
    """A network whose layers have a fixed graph, except for the voxels."""

    def __init__(self, network: nn.Module, graph: PQGraph) -> None:
        super().__init__()
        self.network = deepcopy(network).cpu().float()
        axes = graph.scans[0].edges.axes
        assert axes is not None
        steps = _steps(self.network, axes.cpu().numpy())
        self.n_types = len(steps)
        columns = {tuple(step): i for i, step in enumerate(steps.tolist())}
        for name, module in list(self.named_modules(remove_duplicate=False)):
            if isinstance(module, PQTensorFieldLayer):
                parent, _, own = name.rpartition(".")
                setattr(self.get_submodule(parent), own, _FixedLayer(module, graph, columns))

    def forward(self, signal: Tensor, *tables: Tensor) -> Tensor:
        neighbours, *surroundings = tables
        window = None
        if surroundings:
            places, x, y, z = surroundings
            window = GridWindow((x.shape[0], y.shape[0], z.shape[0]), places, (x, y, z))
        output: Tensor = self.network(signal, _Table(neighbours, window))
        return output


class _FixedLayer(nn.Module):
    """A layer to one direction (or without any), as a matrix for each neighbour."""

    def __init__(
        self, layer: PQTensorFieldLayer, graph: PQGraph, columns: Mapping[tuple[int, ...], int]
    ) -> None:
        super().__init__()
        (scan,) = layer.neighbourhoods(graph).scans
        edges, q = scan.edges, layer.q_space(scan)
        assert layer.self_interaction is None
        assert isinstance(q, QSpace)
        assert edges.steps is not None
        #: Columns of its neighbours in the table, which has those of all layers.
        self.columns = [columns[tuple(step)] for step in edges.steps.tolist()]
        self.kernel: Tensor
        with torch.no_grad():
            kernels = [
                _kernel(DenseFilter(f, edges, q, torch.float32))
                for f in layer.filters
                if isinstance(f, PQFilter)
            ]
            self.register_buffer("kernel", torch.stack(kernels).sum(dim=0))
            bias = torch.zeros(self.kernel.shape[2])
            if layer.bias is not None:
                bias[list(layer.scalars_out)] = layer.bias
            self.bias: Tensor
            self.register_buffer("bias", bias)

    def forward(self, x: Tensor, table: _Table) -> Tensor:
        # An additional voxel of zeros takes the place of missing neighbours.
        padded = F.pad(x.flatten(1), (0, 0, 0, 1))
        out = self.bias.expand(x.shape[0], -1)
        for column, matrix in zip(self.columns, self.kernel, strict=True):
            out = out + padded.index_select(0, table.neighbours[:, column]) @ matrix
        return out


def _kernel(filter: DenseFilter) -> Tensor:
    """(T, Q_in dim_in, dim_out)."""
    weight = filter.weight(filter.coefficients(), slice(0, 1))
    middle = torch.tensor(filter.cells) // 2
    assert filter.edges.steps is not None
    x, y, z = (middle - filter.edges.steps).unbind(1)  # a convolution looks at p_in - p_out
    return weight[..., x, y, z].permute(2, 1, 0).contiguous()


def _q_space(graph: PQGraph) -> QSpace:
    q = graph.scans[0].q
    assert isinstance(q, QSpace)
    return q
