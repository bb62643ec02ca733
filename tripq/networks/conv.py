"""The reference without rotation equivariance: 3D convolutions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from tripq.backends.precision import check_dtype
from tripq.domain.graph import PQGraph
from tripq.networks.signal import LARGEST_RATIO
from tripq.nn.bound import Bindable


class ConvSegmenter(Bindable):
    """The reference without rotation equivariance: 3D convolutions, the directions as channels.

    It is made for one gradient table: a fixed number of directions in a fixed order.  It takes the
    same features and graphs as the equivariant networks (made by `PQGraph.from_grid`); voxels
    outside the mask are zero.

    Parameters
    ----------
    n_directions : int
        Number of samples of each voxel, b0 included.
    widths : tuple of int
        Channels of the hidden layers.
    kernel_size : int
        Of every convolution.
    n_classes : int
        Logits of a voxel.
    """

    def __init__(
        self,
        n_directions: int,
        *,
        widths: tuple[int, ...] = (48, 48, 32),
        kernel_size: int = 3,
        n_classes: int = 1,
    ) -> None:
        super().__init__()
        self.n_directions = n_directions
        self.widths = widths
        self.kernel_size = kernel_size
        self.n_classes = n_classes
        self.layers = convolutions(n_directions, widths, kernel_size, n_classes)

    def forward(self, signal: Tensor, graph: PQGraph) -> Tensor:
        """Logits from the signal (V, Q), divided by b0: (V,) of one class, (V, C) of more."""
        if signal.ndim != 2 or signal.shape[1] != self.n_directions:
            raise ValueError(
                f"this network was made for {self.n_directions} directions in a fixed order, but "
                f"the signal has the shape {tuple(signal.shape)}"
            )
        check_dtype(signal, next(self.parameters()))
        return on_volumes(self.layers, signal.clamp(max=LARGEST_RATIO), graph)


def convolutions(
    channels: int, widths: Sequence[int], kernel_size: int, n_classes: int = 1
) -> nn.Sequential:
    """3D convolutions with batch norms from volumes of `channels` to those of logits."""
    layers: list[nn.Module] = []
    for width in widths:
        layers += [
            nn.Conv3d(channels, width, kernel_size, padding="same"),
            nn.BatchNorm3d(width),
            nn.ReLU(),
        ]
        channels = width
    return nn.Sequential(*layers, nn.Conv3d(channels, n_classes, kernel_size, padding="same"))


def on_volumes(layers: Callable[[Tensor], Tensor], x: Tensor, graph: PQGraph) -> Tensor:
    """Apply a network of volumes to features of voxels.

    Parameters
    ----------
    layers : callable
        From volumes (N, C, X, Y, Z), zero outside the mask, to (N, C', X, Y, Z).
    x : Tensor of shape (V, C)
        Features.
    graph : PQGraph
        Made by `PQGraph.from_grid`.

    Returns
    -------
    Tensor of shape (V,) for one volume, (V, C') for more

    Raises
    ------
    ValueError
        If the graph has no grid.
    """
    outputs = []
    for scan, part in graph.by_scan(x):
        if scan.grid is None:
            raise ValueError("a convolution needs a grid: make the graph with from_grid")
        shape = [max(sizes) for sizes in zip(*scan.grid.shapes, strict=True)]
        patch, i, j, k = scan.grid.voxels.unbind(1)
        volume = part.new_zeros(len(scan.grid.shapes), *shape, x.shape[1])
        volume[patch, i, j, k] = part
        output = layers(volume.permute(0, 4, 1, 2, 3).contiguous())
        outputs.append(output[patch, :, i, j, k])
    values = torch.cat(outputs)
    return values[:, 0] if values.shape[1] == 1 else values
