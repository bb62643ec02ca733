"""Output of a network in every voxel of a scan, in bounded memory.

A scan is cut into blocks.  Each is evaluated with a halo as wide as the receptive field, so that
the output equals that of the whole scan at once.  The statistics of instance norms, which are
averages over wider surroundings or over the whole scan, are computed first.

>>> from tripq.networks.paper import PaperSegmenter
>>> dwi = DWI(
...     signal=np.ones((216, 4), np.float32),
...     b_values=np.array([0.0, 1000.0, 1000.0, 1000.0]),
...     q=np.concatenate([np.zeros((1, 3)), np.eye(3)]),
...     mask=np.ones((6, 6, 6), bool),
...     affine=np.diag([3.0, 3.0, 3.0, 1.0]),
...     b0=np.ones(216, np.float32),
... )
>>> predict_blocks(PaperSegmenter().eval(), dwi).shape
(216,)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tripq.domain.graph import PQGraph
from tripq.domain.voxels import neighbour_steps
from tripq.nn.batch_norm import BatchNorm, LocalStatistics
from tripq.nn.layer import PQTensorFieldLayer
from tripq.nn.products import SphericalProducts
from tripq.scans import B_REFERENCE, DWI, DWIError

Box = tuple[slice, slice, slice]

BLOCK_BYTES = 2e9
"""Of a block, about, unless a number of voxels is given: whole heads, if q-space is reduced first.
The halo of a smaller block is evaluated several times."""

_LIVE_TENSORS = 8
"""How many tensors as large as the input and the output of the widest layer are held at a time.

Measured on the CPU with blocks of 14,000 to 110,000 voxels of 33 to 97 samples: 3 to 4 for
a network whose first layer reduces q-space, 4 to 7 for `PaperSegmenter`."""


def graph_radius(network: nn.Module) -> float:
    """The radius in mm that a graph needs to have for a network: the largest of its layers.

    A network without such layers takes any graph: 0.
    """
    return max((layer.p_radius for layer in _tensor_field_layers(network)), default=0.0)


def instance_norms(network: nn.Module) -> list[BatchNorm]:
    """The norms of a network that normalise over each scan, or the surroundings of each voxel."""
    return [m for m in network.modules() if isinstance(m, BatchNorm) and m.instance]


def reads_b0_contrast(network: nn.Module) -> bool:
    """Whether a network, or a part of it, reads the contrast of b0.

    See `tripq.networks.encoder.Encoder`.
    """
    return any(getattr(module, "b0_contrast", False) for module in network.modules())


def takes_scaled(network: nn.Module) -> bool:
    """Whether a network takes scans that are scaled by their response.

    See `tripq.scans.response`.
    """
    return any(getattr(module, "takes_scaled", False) for module in network.modules())


def network_input(
    network: nn.Module, dwi: DWI, rows: NDArray[np.integer] | slice = slice(None)
) -> NDArray[np.float32]:
    """The signal of some voxels of a scan, as a network reads it.

    Parameters
    ----------
    network : Module
        The network.
    dwi : DWI
        The whole scan, V voxels with Q samples.
    rows : (n,) int array or slice
        Voxels; all by default.

    Returns
    -------
    (n, Q) float32 array
        Divided by b0; at q = 0 it is 1, or `DWI.b0_contrast` for a network that reads it.

    Examples
    --------
    >>> from tripq.networks.encoder import Encoder
    >>> dwi = DWI(
    ...     signal=np.array([[1.0, 0.5], [1.0, 0.4], [1.0, 0.6]], dtype=np.float32),
    ...     b_values=np.array([0.0, 1000.0]),
    ...     q=np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]),
    ...     mask=np.ones((3, 1, 1), dtype=bool),
    ...     affine=np.eye(4),
    ...     b0=np.array([300.0, 450.0, 150.0], dtype=np.float32),
    ... )
    >>> network_input(Encoder(b0_contrast=True), dwi)
    array([[1. , 0.5],
           [1.5, 0.4],
           [0.5, 0.6]], dtype=float32)
    """
    signal = dwi.signal[rows]
    if not reads_b0_contrast(network):
        return signal
    signal = signal.copy() if isinstance(rows, slice) else signal
    signal[:, 0] = dwi.b0[rows] / dwi.b0_median
    return signal


def receptive_field(network: nn.Module, affine: NDArray[np.floating]) -> NDArray[np.int64]:
    """Reach of the receptive field of a network, in voxels along each axis of the grid.

    Parameters
    ----------
    network : Module
        Its tensor field layers and 3D convolutions follow one another.
    affine : (4, 4) array
        Of the grid, in mm.

    Returns
    -------
    (3,) int64 array

    Examples
    --------
    >>> from tripq.networks.conv import ConvSegmenter
    >>> from tripq.networks.paper import PaperSegmenter
    >>> affine = np.diag([2.0, 2.0, 4.0, 1.0])
    >>> receptive_field(PaperSegmenter(p_radius=3.6), affine)
    array([5, 5, 0])
    >>> receptive_field(ConvSegmenter(33, widths=(8, 8)), affine)
    array([3, 3, 3])
    """
    reach = np.zeros(3, dtype=np.int64)
    for layer in _tensor_field_layers(network):
        axes = np.asarray(affine, dtype=np.float64)[:3, :3]
        offsets = neighbour_steps(axes, layer.p_radius, layer.quadrature)
        reach += np.abs(offsets).max(axis=0)
    for module in network.modules():
        if isinstance(module, nn.Conv3d):
            size, dilation = np.array(module.kernel_size), np.array(module.dilation)
            reach += dilation * (size - 1) - dilation * (size - 1) // 2  # the wider side
    return reach


@dataclass(frozen=True)
class ScanBlock:
    """Part of a grid: the output voxels, and the input voxels that a network needs for them."""

    inner: Box
    outer: Box


def split_blocks(
    mask: NDArray[np.bool_], halo: NDArray[np.integer], max_voxels: int
) -> list[ScanBlock]:
    """Halve the box around a mask until no block has too many voxels.

    Parameters
    ----------
    mask : (X, Y, Z) bool array
        The voxels that count.
    halo : (3,) int array
        How much wider the outer box is on each side, in voxels; it ends where the grid ends.
    max_voxels : int
        Masked voxels in an outer box.  Blocks of a single voxel may have more.

    Returns
    -------
    list of ScanBlock
        Every masked voxel lies in one inner box.

    Examples
    --------
    >>> blocks = split_blocks(np.ones((8, 2, 2), bool), np.array([1, 0, 0]), max_voxels=20)
    >>> [(block.inner[0], block.outer[0]) for block in blocks]
    [(slice(0, 4, None), slice(0, 5, None)), (slice(4, 8, None), slice(3, 8, None))]
    """
    if max_voxels < 1:
        raise ValueError(f"max_voxels must be 1 or more, not {max_voxels}")
    blocks: list[ScanBlock] = []
    waiting = [(slice(0, mask.shape[0]), slice(0, mask.shape[1]), slice(0, mask.shape[2]))]
    while waiting:
        inner = _shrink(mask, waiting.pop())
        if inner is None:
            continue
        outer = _grow(inner, halo, mask.shape)
        lengths = [axis.stop - axis.start for axis in inner]
        if np.count_nonzero(mask[outer]) <= max_voxels or max(lengths) == 1:
            blocks.append(ScanBlock(inner, outer))
        else:
            waiting.extend(reversed(_halves(inner, int(np.argmax(lengths)))))
    return blocks


def bytes_per_voxel(network: nn.Module, n_samples: int) -> int:
    """Estimate of the memory that each voxel of a block takes while a network is evaluated.

    Parameters
    ----------
    network : Module
        As for `predict_blocks`.
    n_samples : int
        Of q-space, in each voxel.
    """
    widths = [n_samples]
    for module in network.modules():
        if isinstance(module, PQTensorFieldLayer):
            q_in = 1 if module.q_in is None else n_samples
            q_out = 1 if module.q_out is None else n_samples
            widths.append(module.irreps_in.dim * q_in + module.irreps_out.dim * q_out)
        elif isinstance(module, nn.Conv3d):
            widths.append(module.in_channels + module.out_channels)
        elif isinstance(module, SphericalProducts):
            widths.append(module.n_points * module.factors.shape[1])
    return _LIVE_TENSORS * max(widths) * torch.finfo(torch.float32).bits // 8


def statistics_bytes_per_voxel(network: nn.Module) -> int:
    """Memory that statistics of instance norms take for each voxel of a scan in several blocks.

    All norms keep theirs; contributions, sums and means of one of them are held in addition, in
    double precision.
    """
    widths = [norm.n_statistics for norm in instance_norms(network)]
    return 4 * sum(widths) + 3 * 8 * max(widths, default=0)


def predict_blocks(
    network: nn.Module,
    dwi: DWI,
    *,
    q_out: NDArray[np.floating] | None = None,
    max_voxels: int | None = None,
    device: str | torch.device = "cpu",
    report: Callable[[int, int], None] | None = None,
) -> NDArray[np.float32]:
    """The output of a network in every voxel of a scan.

    Parameters
    ----------
    network : Module
        ``network(signal, graph)`` gives a row for every voxel, (V, ...); it must be in evaluation
        mode, and on `device`.
    dwi : DWI
        The scan.
    q_out : (Q_out, 3) array, optional
        Directions of the output, for a network that predicts the signal; see `PQGraph.from_grid`.
    max_voxels : int, optional
        How many voxels are in memory at once, which bounds it; the result does not depend on it.
        By default as many as `BLOCK_BYTES` hold.
    device : str or torch.device
        Where to compute.
    report : callable, optional
        Called with the voxels that are done and the number of all, after every block.

    Returns
    -------
    (V, ...) float32 array
        In the order of ``np.argwhere(dwi.mask)``.

    Raises
    ------
    ValueError
        If the network is in training mode, or was made for another gradient table.
    DWIError
        If b-values are higher than the network takes, or the scan is not scaled as it needs.
    """
    if network.training:
        raise ValueError("the network is in training mode: call network.eval() first")
    check_b_values(network, dwi)
    _check_units(network, dwi)
    if max_voxels is None:
        max_voxels = max(1, int(BLOCK_BYTES / bytes_per_voxel(network, len(dwi.b_values))))
    blocks = split_blocks(dwi.mask, receptive_field(network, dwi.affine), max_voxels)
    cut = _Cut(network, dwi, q_out, torch.device(device))
    output: NDArray[np.float32] | None = None
    done = 0
    settled = (
        statistics_from(network, lambda: map(cut, blocks), cut.statistics)
        if len(blocks) > 1
        else nullcontext()
    )
    with torch.inference_mode(), settled:
        for part in map(cut, blocks):
            values = network(part.signal, part.graph)[part.wanted].float().cpu().numpy()
            if output is None:
                output = np.empty((len(dwi.b0), *values.shape[1:]), dtype=np.float32)
            output[part.rows] = values
            done += len(part.rows)
            if report is not None:
                report(done, len(output))
    return np.empty(0, np.float32) if output is None else output


@dataclass(frozen=True)
class Part:
    """Part of a scan for a network: V voxels, some of which are only the halo of the others.

    Parameters
    ----------
    signal : (V, Q) Tensor
        Divided by b0.
    graph : PQGraph
        Of these voxels.
    wanted : (V,) Tensor of bool
        Voxels of the part itself, without the halo.
    """

    signal: Tensor
    graph: PQGraph
    wanted: Tensor


@dataclass(frozen=True)
class _CutPart(Part):
    """A block of a scan; `rows` are the places of its own voxels in the scan."""

    rows: NDArray[np.int64]


class _Cut:
    """Cuts blocks out of a scan, and puts the statistics of its voxels together."""

    def __init__(
        self,
        network: nn.Module,
        dwi: DWI,
        q_out: NDArray[np.floating] | None,
        device: torch.device,
    ) -> None:
        self._network, self._dwi, self._q_out, self._device = network, dwi, q_out, device
        self._radius = graph_radius(network)
        self._number = np.full(dwi.mask.shape, -1, dtype=np.int64)
        self._number[dwi.mask] = np.arange(len(dwi.b0))

    def __call__(self, block: ScanBlock) -> _CutPart:
        dwi, seen = self._dwi, self._dwi.mask[block.outer]
        affine = dwi.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ [axis.start for axis in block.outer]
        graph = PQGraph.from_grid(seen, affine, dwi.q, self._radius, q_out=self._q_out)
        rows = self._number[block.outer][seen]
        wanted = np.zeros_like(dwi.mask)
        wanted[block.inner] = True
        wanted = wanted[block.outer][seen]
        return _CutPart(
            torch.from_numpy(network_input(self._network, dwi, rows)).to(self._device),
            graph.to(self._device),
            torch.from_numpy(wanted).to(self._device),
            rows[wanted],
        )

    def statistics(self, norm: BatchNorm, found: Sequence[Contribution]) -> LocalStatistics:
        """Statistics of an instance norm in each voxel of the scan, from what blocks contribute."""
        number = len(self._dwi.b0)
        sums = found[0].sums.new_empty(number, found[0].sums.shape[1])
        numbers = sums.new_empty(number)
        for part in found:
            rows = self._rows(part.p)
            sums[rows], numbers[rows] = part.sums, part.numbers
        statistics = norm.statistics(self._whole.means_around(sums, numbers, norm.window))
        return lambda graph: statistics[self._rows(graph.p)]

    @cached_property
    def _whole(self) -> PQGraph:
        """The voxels of the scan, not joined."""
        graph = PQGraph.from_grid(self._dwi.mask, self._dwi.affine, None, radius=0.0)
        return graph.to(self._device)

    def _rows(self, p: Tensor) -> Tensor:
        """Numbers in the scan of voxels at positions (n, 3) in mm."""
        to_voxels = np.linalg.inv(self._dwi.affine)
        places = p.cpu().numpy() @ to_voxels[:3, :3].T + to_voxels[:3, 3]
        rows = self._number[tuple(np.rint(places).astype(np.int64).T)]
        return torch.from_numpy(rows).to(self._device)


@dataclass(frozen=True)
class Contribution:
    """What the n wanted voxels of a part contribute to the statistics of an instance norm.

    Parameters
    ----------
    p : (n, 3) Tensor
        Their positions in mm.
    sums, numbers : (n, ...) and (n,) Tensor
        See `tripq.nn.batch_norm.BatchNorm.contributions`.
    """

    p: Tensor
    sums: Tensor
    numbers: Tensor


@contextmanager
def statistics_from(
    network: nn.Module,
    parts: Callable[[], Iterable[Part]],
    statistics: Callable[[BatchNorm, Sequence[Contribution]], LocalStatistics],
) -> Iterator[None]:
    """Give instance norms statistics of voxels of all parts while the parts are evaluated.

    A norm changes what those after it see, so that each takes a pass over the parts, which ends at
    the norm.

    Parameters
    ----------
    network : Module
        In evaluation mode.
    parts : callable
        Gives the parts; each voxel of a scan is wanted in one of them.
    statistics : callable
        Makes the statistics of a norm from what the parts contribute, in their order.
    """
    norms = instance_norms(network)
    waiting = list(norms)
    try:
        while waiting and (norm := _settle_next(waiting, network, parts(), statistics)) is not None:
            waiting.remove(norm)
        yield
    finally:
        for norm in norms:
            norm.given = None


def _settle_next(
    norms: Sequence[BatchNorm],
    network: nn.Module,
    parts: Iterable[Part],
    statistics: Callable[[BatchNorm, Sequence[Contribution]], LocalStatistics],
) -> BatchNorm | None:
    """Set the statistics of the norm that the network evaluates first; None if it uses none."""
    found: list[Contribution] = []
    first: BatchNorm | None = None
    for part in parts:
        try:
            with _stopping_at(norms):
                network(part.signal, part.graph)
            return None
        except _Reached as reached:
            first = reached.norm
            every = (part.graph.p, *first.contributions(reached.values, part.graph))
            found.append(Contribution(*(values[part.wanted] for values in every)))
    if first is not None:
        first.given = statistics(first, found)
    return first


class _Reached(Exception):
    """A network has reached a norm, with these features."""

    def __init__(self, norm: BatchNorm, values: Tensor) -> None:
        super().__init__()
        self.norm, self.values = norm, values


@contextmanager
def _stopping_at(norms: Sequence[BatchNorm]) -> Iterator[None]:
    """Raise `_Reached` at the first of some norms."""

    def stop(norm: nn.Module, given: tuple[Tensor, PQGraph]) -> None:
        assert isinstance(norm, BatchNorm)
        raise _Reached(norm, given[0])

    hooks = [norm.register_forward_pre_hook(stop) for norm in norms]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _tensor_field_layers(network: nn.Module) -> list[PQTensorFieldLayer]:
    return [module for module in network.modules() if isinstance(module, PQTensorFieldLayer)]


def check_b_values(network: nn.Module, dwi: DWI) -> None:
    """Check that a network accepts the b-values of a scan.

    Raises
    ------
    DWIError
        If one is higher than ``q_max`` of a layer allows.
    """
    limits = [
        layer.q_max
        for layer in _tensor_field_layers(network)
        if layer.q_in is not None or layer.q_out is not None
    ]
    highest = B_REFERENCE * min(limits, default=np.inf) ** 2
    if dwi.b_values.max() > highest * (1 + 1e-6):
        raise DWIError(
            f"{dwi.path or 'scan'}: b-values up to {dwi.b_values.max():.0f} s/mm2, but the network "
            f"takes no more than {highest:.0f}: remove the volumes above."
        )


def _check_units(network: nn.Module, dwi: DWI) -> None:
    if takes_scaled(network) == (dwi.response is not None):
        return
    wanted = (
        "takes scans that are scaled by their response: tripq.scans.response.scale_by_response"
        if takes_scaled(network)
        else "takes scans as they were read, and this one is scaled by its response"
    )
    raise DWIError(f"{dwi.path or 'scan'}: a {type(network).__name__} {wanted}.")


def _shrink(mask: NDArray[np.bool_], box: Box) -> Box | None:
    """The smallest box around the masked voxels of a box; None if there are none."""
    found = np.argwhere(mask[box])
    if len(found) == 0:
        return None
    low, high = found.min(axis=0), found.max(axis=0) + 1
    x, y, z = (
        slice(axis.start + int(a), axis.start + int(b))
        for axis, a, b in zip(box, low, high, strict=True)
    )
    return x, y, z


def _grow(box: Box, halo: NDArray[np.integer], shape: tuple[int, ...]) -> Box:
    """A box with a halo, as far as the grid goes."""
    x, y, z = (
        slice(max(0, axis.start - int(h)), min(length, axis.stop + int(h)))
        for axis, h, length in zip(box, halo, shape, strict=True)
    )
    return x, y, z


def _halves(box: Box, axis: int) -> tuple[Box, Box]:
    middle = (box[axis].start + box[axis].stop) // 2
    first, second = list(box), list(box)
    first[axis] = slice(box[axis].start, middle)
    second[axis] = slice(middle, box[axis].stop)
    return (first[0], first[1], first[2]), (second[0], second[1], second[2])
