"""Networks that give one logit for every voxel of a diffusion scan."""

from __future__ import annotations

from typing import Literal

import torch
from e3nn import o3
from torch import Tensor, nn

from tripq.backends.precision import check_dtype
from tripq.graph import PQGraph
from tripq.layer import Group, PQTensorFieldLayer
from tripq.nn import BatchNorm, GatedNonlinearity, NormsAsScalars, QLengthWeightedMean, QMean
from tripq.paths import Selection

QReduction = Literal["length-weighted", "mean", "layer"]

#: Diffusion only attenuates, so the signal divided by b0 is at most 1, and noise adds little where
#: b0 is bright.  Where b0 is near zero (edges of a mask, fat shifts) the ratio can be 100: networks
#: take it as this.
LARGEST_RATIO = 2.0


class LesionSegmenter(nn.Module):
    """Rotation-equivariant network from a diffusion scan to one logit per voxel.

    The logits commute with joint rotations of voxels and directions and do not depend on the
    signs of the gradient directions; the weights serve any gradient table.  The layers sum over
    the voxels within a radius, as the paper's equation does, so a trained network is for scans of
    about the voxel size that it was trained on.

    The first layer reduces q-space at once, to features of order 0, 2 and 4, the orders in which
    the anisotropy of diffusion lives (its signal is even), each voxel by itself unless another
    filter is asked for.  Their norms become scalars, and layers on p-space follow.
    `LesionSegmenter.paper` is the authors' network instead.

    Parameters
    ----------
    p_radius : float
        Radius of a layer's neighbourhood in mm; 3.6 reaches 27 voxels of 1.8 to 2 mm.
    q_features : Irreps or str
        Features of the first layer.
    p_features : Irreps or str
        Features of each of the p-layers that follow.
    n_p_layers : int
        How many, without the last, which gives the logit.
    batch_norm : bool
        Normalise the features of every layer but the last over the voxels of a batch.
    q_max : float
        The largest |q| = sqrt(b / b_ref) in any scan.
    filter, selection, group, antipodal : str, str, str, bool
        Of the first layer; see `PQTensorFieldLayer`. With ``filter="q"`` it keeps to the voxel
        itself; with the others it sums over the neighbours, too, and with ``"p"`` it sees no more
        of the directions than the mean signal.

    Raises
    ------
    ValueError
        If no path leads to some of the features, which then would always be 0.

    Examples
    --------
    >>> import numpy as np
    >>> q = np.concatenate([np.zeros((1, 3)), np.eye(3)])
    >>> graph = PQGraph.from_grid(np.ones((5, 5, 5)), np.diag([2.0, 2, 2, 1]), q, radius=3.6)
    >>> LesionSegmenter()(torch.rand(125, 4), graph).shape
    torch.Size([125])
    """

    def __init__(
        self,
        *,
        p_radius: float = 3.6,
        q_features: o3.Irreps | str = "24x0e + 8x2e + 4x4e",
        p_features: o3.Irreps | str = "24x0e + 6x1o + 8x2e",
        n_p_layers: int = 3,
        batch_norm: bool = True,
        q_max: float = 2.0,
        filter: str = "q",
        selection: Selection = "all",
        group: Group = "SO3",
        antipodal: bool = True,
    ) -> None:
        super().__init__()
        self.p_radius = p_radius
        self.q_features = str(q_features)
        self.p_features = str(p_features)
        self.n_p_layers = n_p_layers
        self.batch_norm = batch_norm
        self.q_max = q_max
        self.filter = filter
        self.selection = selection
        self.group = group
        self.antipodal = antipodal
        first = _Block(
            "1x0e",
            q_features,
            norms=True,
            batch_norm=batch_norm,
            p_radius=0.0 if filter == "q" else p_radius,
            q_max=q_max,
            q_out=None,
            filter=filter,
            selection=selection,
            group=group,
            antipodal=antipodal,
            lmax_p=2,
            lmax_q=4,
        )
        blocks = [first]
        for _ in range(n_p_layers):
            blocks.append(
                _Block(
                    blocks[-1].irreps_out,
                    p_features,
                    norms=True,
                    batch_norm=batch_norm,
                    p_radius=p_radius,
                    q_in=None,
                    lmax_p=2,
                )
            )
        self.blocks = nn.ModuleList(blocks)
        self.head = PQTensorFieldLayer(
            blocks[-1].irreps_out, "1x0e", p_radius, q_in=None, lmax_p=2, bias=True
        )

    @classmethod
    def paper(
        cls,
        *,
        p_radius: float = 5.0,
        q_reduction: QReduction = "length-weighted",
        q_max: float = 2.0,
    ) -> PaperSegmenter:
        """The network of Müller et al.: see `PaperSegmenter`."""
        return PaperSegmenter(p_radius=p_radius, q_reduction=q_reduction, q_max=q_max)

    def forward(self, signal: Tensor, graph: PQGraph) -> Tensor:
        """Logits of shape (V,) from the signal (V, Q), divided by b0."""
        x = signal.clamp(max=LARGEST_RATIO)[..., None]
        for block in self.blocks:
            x = block(x, graph)
        logits: Tensor = self.head(x, graph)
        return logits[:, 0]


class PaperSegmenter(nn.Module):
    """The five layers of Müller et al. (arXiv:2102.06942, section 4), as their code has them.

    One layer on p- and q-space to seven scalars and four vectors, a reduction of q-space, and
    layers on p-space to 20x0 + 5x1, 10x0 + 3x1, 5x0 + 2x1 and the logit, each but the last with
    batch normalisation and a gate.

    Parameters
    ----------
    p_radius : float
        Radius of each neighbourhood in mm.
    q_reduction : {"length-weighted", "mean", "layer"}
        How q-space is reduced.
    q_max : float
        The largest |q| in any scan.
    """

    def __init__(
        self,
        *,
        p_radius: float = 5.0,
        q_reduction: QReduction = "length-weighted",
        q_max: float = 2.0,
    ) -> None:
        super().__init__()
        self.p_radius = p_radius
        self.q_reduction = q_reduction
        self.q_max = q_max
        self.pq_block = _Block(
            "1x0e",
            "7x0e + 4x1o",
            batch_norm=True,
            p_radius=p_radius,
            q_max=q_max,
            selection="tp1",
            q_directions="unit",
        )
        features = self.pq_block.irreps_out
        if q_reduction == "length-weighted":
            self.reduction: nn.Module = QLengthWeightedMean(features, q_max)
        elif q_reduction == "mean":
            self.reduction = QMean()
        elif q_reduction == "layer":
            self.reduction = PQTensorFieldLayer(
                features, features, 0.0, q_max=q_max, q_out=None, lmax_q=2
            )
        else:
            raise ValueError(
                f'q_reduction is one of "length-weighted", "mean", "layer", not {q_reduction!r}'
            )
        blocks = []
        for irreps in ("20x0e + 5x1o", "10x0e + 3x1o", "5x0e + 2x1o"):
            blocks.append(_Block(features, irreps, batch_norm=True, p_radius=p_radius, q_in=None))
            features = blocks[-1].irreps_out
        self.p_blocks = nn.ModuleList(blocks)
        self.head = PQTensorFieldLayer(features, "1x0e", p_radius, q_in=None, bias=True)

    def forward(self, signal: Tensor, graph: PQGraph) -> Tensor:
        """Logits of shape (V,) from the signal (V, Q), divided by b0."""
        x = self.reduction(self.pq_block(signal.clamp(max=LARGEST_RATIO)[..., None], graph), graph)
        for block in self.p_blocks:
            x = block(x, graph)
        logits: Tensor = self.head(x, graph)
        return logits[:, 0]


class _Block(nn.Module):
    """A layer, batch normalisation if asked, the gate, and norms as further scalars if asked."""

    def __init__(
        self,
        irreps_in: o3.Irreps | str,
        irreps_out: o3.Irreps | str,
        *,
        norms: bool = False,
        batch_norm: bool = False,
        p_radius: float,
        **layer: object,
    ) -> None:
        super().__init__()
        self.gate = GatedNonlinearity(irreps_out)
        self.layer = PQTensorFieldLayer(
            irreps_in,
            self.gate.irreps_in,
            p_radius,
            bias=not batch_norm,
            **layer,  # type: ignore[arg-type]
        )
        if self.layer.unreached:
            raise ValueError(f"no path leads to {self.layer.unreached} of {irreps_out}")
        self.norm = BatchNorm(self.gate.irreps_in) if batch_norm else nn.Identity()
        self.norms = NormsAsScalars(self.gate.irreps_out) if norms else nn.Identity()
        self.irreps_out = self.norms.irreps_out if norms else self.gate.irreps_out

    def forward(self, x: Tensor, graph: PQGraph) -> Tensor:
        y = self.layer(x, graph)
        if isinstance(self.norm, BatchNorm):
            y = self._normalized(y, graph)
        result: Tensor = self.norms(self.gate(y))
        return result

    def _normalized(self, y: Tensor, graph: PQGraph) -> Tensor:
        """Batch norm over the nodes that exist, not over the padding of scans with fewer."""
        filled = graph.filled(y)
        if filled is None:
            normalized: Tensor = self.norm(y)
            return normalized
        values: Tensor = self.norm(y[filled])
        return values.new_zeros(y.shape).index_put((filled,), values)


class ConvSegmenter(nn.Module):
    """The reference without rotation equivariance: 3D convolutions, the directions as channels.

    It is made for one gradient table: a fixed number of directions in a fixed order.  It takes the
    same features and graphs as `LesionSegmenter` (made by `PQGraph.from_grid`); voxels outside the
    mask are zero.

    Parameters
    ----------
    n_directions : int
        Number of samples of each voxel, b0 included.
    widths : tuple of int
        Channels of the hidden layers.
    kernel_size : int
        Of every convolution.
    """

    def __init__(
        self, n_directions: int, *, widths: tuple[int, ...] = (48, 48, 32), kernel_size: int = 3
    ) -> None:
        super().__init__()
        self.n_directions = n_directions
        self.widths = widths
        self.kernel_size = kernel_size
        layers: list[nn.Module] = []
        channels = n_directions
        for width in widths:
            layers += [
                nn.Conv3d(channels, width, kernel_size, padding="same"),
                nn.BatchNorm3d(width),
                nn.ReLU(),
            ]
            channels = width
        layers.append(nn.Conv3d(channels, 1, kernel_size, padding="same"))
        self.layers = nn.Sequential(*layers)

    def forward(self, signal: Tensor, graph: PQGraph) -> Tensor:
        """Logits of shape (V,) from the signal (V, Q), divided by b0."""
        if signal.ndim != 2 or signal.shape[1] != self.n_directions:
            raise ValueError(
                f"this network was made for {self.n_directions} directions in a fixed order, but "
                f"the signal has the shape {tuple(signal.shape)}"
            )
        check_dtype(signal, next(self.parameters()))
        rows = [scan.n_voxels for scan in graph.scans]
        logits = []
        for scan, part in graph.split(signal, rows):
            if scan.grid is None:
                raise ValueError("a convolution needs a grid: make the graph with from_grid")
            shape = [max(sizes) for sizes in zip(*scan.grid.shapes, strict=True)]
            patch, i, j, k = scan.grid.voxels.unbind(1)
            volume = part.new_zeros(len(scan.grid.shapes), *shape, self.n_directions)
            volume[patch, i, j, k] = part.clamp(max=LARGEST_RATIO)
            output = self.layers(volume.permute(0, 4, 1, 2, 3).contiguous())
            logits.append(output[patch, 0, i, j, k])
        return torch.cat(logits)
