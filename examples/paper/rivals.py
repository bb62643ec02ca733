"""The rivals: convolutions on maps that any gradient table gives.

Each network begins with a fixed stage from the signal to maps of every voxel, so that training,
whole heads and real scans need no files of maps:

* harmonics: coefficients of order 0, 2 and 4 on each shell, in the axes of the grid, by least
  squares with the Laplace-Beltrami penalty of Descoteaux et al. (MRM 58:497-510, 2007);
* invariants: the norm of each order on each shell, which no rotation of head or table changes;
* tensor: FA, MD, AD and RD of the diffusion tensor, fitted as by dipy's weighted least squares;
* tensor and b0: these, and the logarithm of b0 over its median in the brain, from 0.01 to 2.

The maps are standardised by statistics of the training, and convolutions follow: those of the
reference, or SegResNet of MONAI (Myronenko, arXiv:1810.11654).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from tripq.backends.precision import check_dtype
from tripq.domain.graph import PQGraph
from tripq.domain.qspace import QSpace
from tripq.domain.scan_graph import ScanGraph
from tripq.networks.conv import convolutions, on_volumes
from tripq.networks.registry import register_network
from tripq.networks.signal import LARGEST_RATIO
from tripq.nn.bound import Bindable
from tripq.scans import B_REFERENCE, DWIError
from tripq.scans.shells import LIKE_B, TENSOR_DIRECTIONS, count_directions, find_shells
from tripq.so3.fit import ShellFit, even_orders

ORDERS = even_orders(4)

#: Of the penalty l^2 (l + 1)^2 on the coefficients of order l, for each direction of a shell:
#: enough for fewer directions than coefficients; else it takes 4 % from those of order 4.
PENALTY = 1e-4

#: Of b0: lower signals are noise, and their logarithms would dominate.
LOWEST = 0.01

#: Of the tensor fit, relative to one sample of weight 1 at b_ref.
RIDGE = 1e-10


# -- maps ----------------------------------------------------------------------------------------


def harmonic_maps(signal: Tensor, q: Tensor, b_values: Sequence[float]) -> Tensor:
    """Coefficients of the signal in spherical harmonics of order 0, 2 and 4 on shells.

    Parameters
    ----------
    signal : Tensor of shape (V, Q)
        Divided by b0.
    q : Tensor of shape (Q, 3)
        q-vectors, ``|q| = sqrt(b / b_ref)``.
    b_values : sequence of float
        Of the S shells, in s/mm2; those of the scan may differ by `LIKE_B`.

    Returns
    -------
    Tensor of shape (V, 15 S)
        Of each shell order by order, in the "component" normalisation of e3nn.

    Raises
    ------
    DWIError
        If the scan has no shell near a b-value.
    """
    maps = []
    for rows in _shells(q, b_values):
        # `ShellFit` multiplies by 4 pi: its weight is that of orthonormal harmonics
        smoothing = PENALTY * len(rows) / (4 * math.pi)
        fit = ShellFit.of(q[rows].double(), ORDERS[-1], smoothing)
        maps.append(signal[:, rows] @ fit.matrix.T.to(signal))
    return torch.cat(maps, dim=1)


def invariant_maps(signal: Tensor, q: Tensor, b_values: Sequence[float]) -> Tensor:
    """The mean signal of shells, and the norms of its orders 2 and 4, (V, 3 S).

    Parameters and errors are those of `harmonic_maps`.
    """
    coefficients = harmonic_maps(signal, q, b_values)
    orders = coefficients.split([2 * l + 1 for l in ORDERS] * len(b_values), dim=1)
    return torch.cat([part if part.shape[1] == 1 else _norm(part) for part in orders], dim=1)


def tensor_maps(signal: Tensor, q: Tensor, b_values: Sequence[float]) -> Tensor:
    """FA, and MD, AD and RD in units of 1 / b_ref, (V, 4).

    The logarithm of the signal of b0 and the shells is fitted by least squares, and again with the
    squares of the fitted signal as weights; eigenvalues below 0 become 0.

    Parameters and errors are those of `harmonic_maps`; without b-values all shells are fitted.
    A scan with fewer than six different directions is an error, too; six or more that do not
    determine a tensor, such as on a cone, give the smallest one that fits.
    """
    b0 = torch.nonzero(q.norm(dim=1) == 0).flatten()
    rows = torch.cat([b0, *_shells(q, b_values)])
    x, y, z = q[rows].double().unbind(1)
    products = [x * x, y * y, z * z, 2 * x * y, 2 * x * z, 2 * y * z]
    design = torch.stack([*(-product for product in products), torch.ones_like(x)], dim=1)
    logs = signal[:, rows].double().clamp(min=LOWEST).log()
    if not len(b0) or count_directions(q[rows].detach().cpu()) < TENSOR_DIRECTIONS:
        raise DWIError("a tensor needs b0 and six different directions; this scan has fewer.")
    weights = (2 * (logs @ torch.linalg.pinv(design).T @ design.T)).exp()
    outer = (design[:, :, None] * design[:, None, :]).flatten(1)
    # Six directions of a symmetric table may lie on a cone; then the ridge chooses the smallest
    # tensor.  Its weights are those of the Frobenius norm, so the choice turns with the head.
    norm = torch.tensor([1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 1.0])
    outer = outer + RIDGE * torch.diag(norm).to(outer).flatten()
    normal = (weights @ outer).unflatten(1, (design.shape[1], -1))
    fitted = torch.linalg.solve(normal, (weights * logs) @ design)
    xx, yy, zz, xy, xz, yz, _ = fitted.unbind(1)
    tensors = torch.stack([xx, xy, xz, xy, yy, yz, xz, yz, zz], dim=1).unflatten(1, (3, 3))
    values = torch.linalg.eigvalsh(tensors).clamp(min=0)
    mean = values.mean(dim=1)
    spread = (values - mean[:, None]).square().sum(dim=1)
    squares = values.square().sum(dim=1)
    fa = (1.5 * spread / torch.where(squares > 0, squares, 1)).sqrt()
    radial, axial = values[:, :2].mean(dim=1), values[:, 2]
    return torch.stack([fa, mean, axial, radial], dim=1).to(signal)


def tensor_and_b0_maps(signal: Tensor, q: Tensor, b_values: Sequence[float]) -> Tensor:
    """`tensor_maps` and the logarithm of the contrast of b0, (V, 5).

    The signal at q = 0 is `tripq.scans.DWI.b0_contrast`, at most `LARGEST_RATIO`.
    """
    at_b0 = q.norm(dim=1) == 0
    contrast = signal[:, at_b0].mean(dim=1, keepdim=True).clamp(min=LOWEST).log()
    return torch.cat([tensor_maps(signal.masked_fill(at_b0, 1.0), q, b_values), contrast], dim=1)


@dataclass(frozen=True)
class MapKind:
    """How maps are made.

    Parameters
    ----------
    make : callable
        From signal, q-vectors and b-values to maps (V, C).
    of_shell, of_all : int
        Maps of each shell, and of all shells together.
    b0_contrast : bool
        Whether the signal at q = 0 is `tripq.scans.DWI.b0_contrast`.
    """

    make: Callable[[Tensor, Tensor, Sequence[float]], Tensor]
    of_shell: int = 0
    of_all: int = 0
    b0_contrast: bool = False

    def number(self, shells: int) -> int:
        """Of maps."""
        return self.of_shell * shells + self.of_all


KINDS: Mapping[str, MapKind] = {
    "harmonics": MapKind(harmonic_maps, of_shell=sum(2 * l + 1 for l in ORDERS)),
    "invariants": MapKind(invariant_maps, of_shell=len(ORDERS)),
    "tensor": MapKind(tensor_maps, of_all=4),
    "tensor and b0": MapKind(tensor_and_b0_maps, of_all=5, b0_contrast=True),
}


def _shells(q: Tensor, b_values: Sequence[float]) -> list[Tensor]:
    """Rows of the shell near each b-value; of all shells, if there is none."""
    found = B_REFERENCE * q.detach().double().square().sum(dim=1).cpu().numpy()
    shells, rows = find_shells(found), []
    for wanted in b_values or [shell.b_value for shell in shells]:
        near = min(shells, key=lambda shell: abs(shell.b_value - wanted), default=None)
        if near is None or abs(near.b_value - wanted) > LIKE_B * wanted:
            present = ", ".join(f"{shell.b_value:.0f}" for shell in shells) or "none"
            raise DWIError(
                f"this network needs a shell near b={wanted:g} s/mm2; the scan has {present}."
            )
        rows.append(torch.from_numpy(near.indices).to(q.device))
    return rows


def _norm(x: Tensor) -> Tensor:
    return (x.square().sum(dim=1, keepdim=True) + 1e-12).sqrt()  # differentiable at 0


# -- networks ------------------------------------------------------------------------------------


class Standardise(nn.Module):
    """Maps of mean 0 and standard deviation 1, by the voxels of the first training batches.

    Values further than `LIMIT` from the mean are clipped: they are noise at the edges of masks.

    Parameters
    ----------
    number : int
        Of maps.
    """

    LIMIT = 5.0
    BATCHES = 100

    count: Tensor
    mean: Tensor
    square: Tensor

    def __init__(self, number: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(number))
        self.register_buffer("square", torch.ones(number))

    def forward(self, maps: Tensor) -> Tensor:
        """(V, C) -> (V, C)."""
        if self.training and self.count < self.BATCHES:
            with torch.no_grad():
                self.count += 1
                self.mean += (maps.mean(dim=0) - self.mean) / self.count
                self.square += (maps.square().mean(dim=0) - self.square) / self.count
        deviation = (self.square - self.mean.square()).clamp(min=1e-8).sqrt()
        return ((maps - self.mean) / deviation).clamp(-self.LIMIT, self.LIMIT)


class MapSegmenter(Bindable):
    """Maps of the signal, and layers that a subclass sets; see the module.

    It takes any gradient table with its shells, and uses no other shells; without b-values it uses
    all shells.

    Parameters
    ----------
    maps : {"harmonics", "invariants", "tensor", "tensor and b0"}
        What the layers see, beside the mask.
    turned : bool
        Whether training boxes are turned and mirrored at random in the 48 ways that map a grid onto
        itself, gradient table included.
    b_values : tuple of int
        Of the shells, in s/mm2; a tensor can be fitted to all shells: ``()``.

    Raises
    ------
    ValueError
        If there are no such maps, or maps of each shell without b-values.
    """

    layers: nn.Module
    steps: Tensor

    def __init__(self, maps: str, turned: bool, b_values: tuple[int, ...]) -> None:
        super().__init__()
        if maps not in KINDS:
            raise ValueError(f"there are no maps {maps!r}, only {', '.join(KINDS)}")
        if KINDS[maps].of_shell and not b_values:
            raise ValueError(f"{maps} are maps of each shell, and need b-values.")
        self.maps = maps
        self.b0_contrast = KINDS[maps].b0_contrast
        self.turned = turned
        self.b_values = b_values
        self.standardise = Standardise(KINDS[maps].number(len(b_values)))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @property
    def channels(self) -> int:
        """Of the volumes: the maps, and the mask."""
        return len(self.standardise.mean) + 1

    def forward(self, signal: Tensor, graph: PQGraph) -> Tensor:
        """Logits from the signal (V, Q), divided by b0: (V,) of one class, (V, C) of more."""
        check_dtype(signal, next(self.parameters()))
        turn = self._turn()
        with torch.autocast(signal.device.type, enabled=False):
            maps = [self._of_scan(scan, part, turn) for scan, part in graph.by_scan(signal)]
            x = self.standardise(torch.cat(maps))
            x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1).to(signal.dtype)
        return on_volumes(
            lambda volume: turn_volume(self.layers(turn_volume(volume, turn)), turn.T), x, graph
        )

    def _of_scan(self, scan: ScanGraph, signal: Tensor, turn: NDArray[np.int64]) -> Tensor:
        """The maps of a scan whose grid is turned."""
        if not isinstance(scan.q, QSpace) or scan.edges.axes is None:
            raise ValueError("maps need a grid and a gradient table: make the graph with from_grid")
        axes = scan.edges.axes / scan.edges.axes.norm(dim=0)
        q = scan.q.q_in @ axes @ torch.from_numpy(turn.T).to(axes)
        ratios = signal[:, : len(q)].float().clamp(max=LARGEST_RATIO)
        return KINDS[self.maps].make(ratios, q, self.b_values)

    def _turn(self) -> NDArray[np.int64]:
        """How the grid is turned: a signed permutation (3, 3) of its axes.

        Its random numbers are those of the step, so that an interrupted training can go on.
        """
        turn = np.eye(3, dtype=np.int64)
        if self.turned and self.training:
            rng = np.random.default_rng(int(self.steps))
            turn = rng.choice([-1, 1], size=(3, 1)) * turn[rng.permutation(3)]
            self.steps += 1
        return turn


@register_network
class MapConvSegmenter(MapSegmenter):
    """The convolutions of `tripq.networks.conv.ConvSegmenter` on maps.

    Parameters
    ----------
    maps, turned, b_values
        See `MapSegmenter`.
    widths : tuple of int
        Channels of the hidden layers.
    kernel_size : int
        Of every convolution.
    n_classes : int
        Logits of a voxel.
    """

    def __init__(
        self,
        maps: str = "invariants",
        *,
        widths: tuple[int, ...] = (48, 48, 32),
        kernel_size: int = 3,
        turned: bool = False,
        b_values: tuple[int, ...] = (1000,),
        n_classes: int = 1,
    ) -> None:
        super().__init__(maps, turned, b_values)
        self.widths = widths
        self.kernel_size = kernel_size
        self.n_classes = n_classes
        self.layers = convolutions(self.channels, widths, kernel_size, n_classes)


@register_network
class MapResNetSegmenter(MapSegmenter):
    """SegResNet of MONAI on maps, with batch norms.

    Its own group norms would depend on how much of a box lies outside the head.  It is for whole
    heads: where a block begins would change what it pools.

    Parameters
    ----------
    maps, turned, b_values
        See `MapSegmenter`.
    filters : int
        Channels of the first level; twice as many in each further one, of half the size.
    blocks : tuple of int
        Residual blocks of each level on the way down.
    n_classes : int
        Logits of a voxel.

    Raises
    ------
    ValueError
        If MONAI is not installed.
    """

    def __init__(
        self,
        maps: str = "invariants",
        *,
        filters: int = 16,
        blocks: tuple[int, ...] = (1, 2, 2),
        turned: bool = False,
        b_values: tuple[int, ...] = (1000,),
        n_classes: int = 1,
    ) -> None:
        super().__init__(maps, turned, b_values)
        try:
            from monai.networks.nets import SegResNet
        except ImportError as error:
            raise ValueError(
                "SegResNet is part of MONAI, which is not installed: pip install 'tripq[bench]'"
            ) from error
        self.filters = filters
        self.blocks = blocks
        self.n_classes = n_classes
        network = SegResNet(
            init_filters=filters,
            in_channels=self.channels,
            out_channels=n_classes,
            norm="BATCH",
            blocks_down=tuple(blocks),
            blocks_up=(1,) * (len(blocks) - 1),
        )
        self.layers = Padded(network, 2 ** (len(blocks) - 1))


class Padded(nn.Module):
    """A network of volumes (N, C, X, Y, Z) that takes sizes which are multiples of a factor."""

    def __init__(self, network: nn.Module, factor: int) -> None:
        super().__init__()
        self.network = network
        self.factor = factor

    def forward(self, volume: Tensor) -> Tensor:
        """(N, C, X, Y, Z) -> (N, C', X, Y, Z), for any size."""
        x, y, z = volume.shape[2:]
        padding = [pad for length in (z, y, x) for pad in (0, -length % self.factor)]
        output: Tensor = self.network(F.pad(volume, padding))
        return output[:, :, :x, :y, :z]


def turn_volume(volume: Tensor, turn: NDArray[np.int64]) -> Tensor:
    """Volumes (N, C, X, Y, Z) on axes that are turned by a signed permutation (3, 3)."""
    order = np.abs(turn).argmax(axis=1)
    mirrored = [2 + axis for axis in range(3) if turn[axis, order[axis]] < 0]
    return volume.permute(0, 1, *(2 + int(axis) for axis in order)).flip(mirrored)
