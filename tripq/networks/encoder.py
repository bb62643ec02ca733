"""Networks on diffusion scans: an encoder, and a linear output layer.

The encoder reduces q-space to features of each voxel; layers on p-space then combine those of
neighbouring voxels.  `VoxelNetwork` adds one linear equivariant layer for the output of a task in a
voxel: scalars, directions, tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import ClassVar

from torch import Tensor, nn

from tripq.domain.graph import PQGraph
from tripq.domain.quadrature import Quadrature
from tripq.filters.radial import Radial
from tripq.infra.e3nn import o3
from tripq.networks.encoding import Encoding
from tripq.networks.signal import LARGEST_RATIO
from tripq.nn.batch_norm import Normalization
from tripq.nn.block import Block
from tripq.nn.layer import Group, PQTensorFieldLayer
from tripq.so3.paths import Selection


class Encoder(Encoding):
    """Rotation-equivariant network from a diffusion scan to features of every voxel.

    The features transform with joint rotations of voxels and directions as `irreps_out` says, and
    do not depend on the signs of the gradient directions; the weights serve any gradient table.
    The layers are integrals over positions and directions, so that a trained network serves scans
    of other voxel sizes, too, see `quadrature`.

    The first layer reduces q-space at once, to features of order 0, 2 and 4, the orders in which
    the anisotropy of diffusion lives (its signal is even), each voxel by itself unless another
    filter is asked for.  Their norms become scalars, and layers on p-space follow.

    Parameters
    ----------
    p_radius : float
        Radius of a layer's neighbourhood in mm; 3 mm reaches 27 voxels of 2 to 5 mm.
    q_features : Irreps or str
        Features of the first layer.
    p_features : Irreps or str
        Features of each of the p-layers that follow.
    n_p_layers : int
        How many of those.
    normalize : {"local", "scan", "batch", "none"}
        How the features of every layer are normalised.  Over the surroundings of each voxel or over
        each scan, contrast and noise of a scanner matter less; in training both are the box, which
        should be 50 to 60 mm wide for surroundings (`tripq.nn.batch_norm.WINDOW`), and a scan must
        show the whole brain.  Surroundings are better for finding what is rare, and scans for what
        is everywhere, such as tissue.  Or over a batch in training, with fixed statistics
        afterwards; or not.
    q_max : float
        The largest |q| = sqrt(b / b_ref) in any scan.
    filter, selection, antipodal : str, str, bool
        Of the first layer; see `PQTensorFieldLayer`. With ``filter="q"`` it keeps to the voxel
        itself; with the others it sums over the neighbours, too, and with ``"p"`` it sees no more
        of the directions than the mean signal.
    group : {"SO3", "O3"}
        Symmetries of every layer: rotations, or with ``"O3"`` reflections too, for which only
        paths exist on which the parities match.
    p_radial, q_radial : Radial
        Radial functions of every layer, of the distance of two voxels and of |q|.
    quadrature : {"integral", "sum"}
        Of every layer; see `PQTensorFieldLayer`.  Weights of an integral serve scans of any voxel
        size and table near those of the training; weights of a sum serve those of the training.
    b0_contrast : bool
        Whether the sample at q = 0 is `tripq.scans.DWI.b0_contrast`, which shows T2, in place
        of 1.  `tripq.networks.blocks.predict_blocks` and `tripq.training.train` see to it; see
        `tripq.networks.blocks.network_input` for a loop of one's own.

    Attributes
    ----------
    irreps_out : Irreps
        The features: `p_features`, and a scalar for the norm of each one of order l > 0.

    Raises
    ------
    ValueError
        If no path leads to some of the features, which then would always be 0.

    Examples
    --------
    >>> import numpy as np, torch
    >>> q = np.concatenate([np.zeros((1, 3)), np.eye(3)])
    >>> graph = PQGraph.from_grid(np.ones((5, 5, 5)), np.diag([2.0, 2, 2, 1]), q, radius=3.6)
    >>> encoder = Encoder(q_features="8x0e + 4x2e", p_features="8x0e + 2x1o", n_p_layers=1)
    >>> encoder.irreps_out
    8x0e+2x1o+2x0e
    >>> encoder(torch.rand(125, 4), graph).shape
    torch.Size([125, 16])
    """

    encoder_kind = "Encoder"
    encoder_arguments: ClassVar[Mapping[str, str]]

    def __init__(
        self,
        *,
        p_radius: float = 3.0,
        q_features: o3.Irreps | str = "24x0e + 8x2e + 4x4e",
        p_features: o3.Irreps | str = "24x0e + 6x1o + 8x2e",
        n_p_layers: int = 3,
        normalize: Normalization = "scan",
        q_max: float = 2.0,
        filter: str = "q",
        selection: Selection = "all",
        group: Group = "SO3",
        antipodal: bool = True,
        p_radial: Radial = Radial("cosine", 2),
        q_radial: Radial = Radial(),
        quadrature: Quadrature = "integral",
        b0_contrast: bool = False,
    ) -> None:
        super().__init__()
        self.p_radius = p_radius
        self.q_features = str(q_features)
        self.p_features = str(p_features)
        self.n_p_layers = n_p_layers
        self.normalize = normalize
        self.q_max = q_max
        self.filter = filter
        self.selection = selection
        self.group = group
        self.antipodal = antipodal
        self.p_radial = p_radial
        self.q_radial = q_radial
        self.quadrature = quadrature
        self.b0_contrast = b0_contrast
        first = Block(
            "1x0e",
            q_features,
            0.0 if filter == "q" else p_radius,
            norms=True,
            normalize=normalize,
            q_max=q_max,
            q_out=None,
            filter=filter,
            selection=selection,
            group=group,
            antipodal=antipodal,
            lmax_p=2,
            lmax_q=4,
            p_radial=p_radial,
            q_radial=q_radial,
            quadrature=quadrature,
        )
        blocks = [first]
        for _ in range(n_p_layers):
            blocks.append(
                Block(
                    blocks[-1].irreps_out,
                    p_features,
                    p_radius,
                    norms=True,
                    normalize=normalize,
                    q_in=None,
                    group=group,
                    lmax_p=2,
                    p_radial=p_radial,
                    quadrature=quadrature,
                )
            )
        self.blocks = nn.ModuleList(blocks)
        self.irreps_out = o3.Irreps(blocks[-1].irreps_out)

    def forward(self, signal: Tensor, graph: PQGraph) -> Tensor:
        """Features of shape (V, irreps_out.dim) from the signal (V, Q), divided by b0."""
        x = signal.clamp(max=LARGEST_RATIO)[..., None]
        for block in self.blocks:
            x = block(x, graph)
        return x


Encoder.encoder_arguments = {name: name for name in signature(Encoder).parameters}


class VoxelNetwork(Encoder):
    """An encoder, and one linear layer on p-space that gives the output of a task in every voxel.

    Parameters
    ----------
    irreps_out : Irreps or str
        The output: ``"1x0e"`` for a map of numbers, ``"1x1o"`` for vectors in world axes,
        ``"1x0e + 1x2e"`` for symmetric tensors, in the components of e3nn.  Its scalars have a
        bias.
    p_radius, q_features, p_features, n_p_layers, normalize, q_max, filter, selection, group, \
antipodal, p_radial, q_radial, quadrature, b0_contrast
        Of the encoder; see `Encoder`.  The last layer has the radius, the group and the radial
        functions of those before it.

    Raises
    ------
    ValueError
        If no path leads to some of the features or of the output, which then would always be 0.

    Examples
    --------
    >>> import numpy as np, torch
    >>> q = np.concatenate([np.zeros((1, 3)), np.eye(3)])
    >>> graph = PQGraph.from_grid(np.ones((5, 5, 5)), np.diag([2.0, 2, 2, 1]), q, radius=3.6)
    >>> VoxelNetwork("1x0e + 1x2e", n_p_layers=1)(torch.rand(125, 4), graph).shape
    torch.Size([125, 6])
    """

    def __init__(
        self,
        irreps_out: o3.Irreps | str = "1x0e",
        *,
        p_radius: float = 3.0,
        q_features: o3.Irreps | str = "24x0e + 8x2e + 4x4e",
        p_features: o3.Irreps | str = "24x0e + 6x1o + 8x2e",
        n_p_layers: int = 3,
        normalize: Normalization = "scan",
        q_max: float = 2.0,
        filter: str = "q",
        selection: Selection = "all",
        group: Group = "SO3",
        antipodal: bool = True,
        p_radial: Radial = Radial("cosine", 2),
        q_radial: Radial = Radial(),
        quadrature: Quadrature = "integral",
        b0_contrast: bool = False,
    ) -> None:
        super().__init__(
            p_radius=p_radius,
            q_features=q_features,
            p_features=p_features,
            n_p_layers=n_p_layers,
            normalize=normalize,
            q_max=q_max,
            filter=filter,
            selection=selection,
            group=group,
            antipodal=antipodal,
            p_radial=p_radial,
            q_radial=q_radial,
            quadrature=quadrature,
            b0_contrast=b0_contrast,
        )
        features, self.irreps_out = self.irreps_out, o3.Irreps(irreps_out)
        scalar = any(ir.l == 0 and (ir.p == 1 or group == "SO3") for _, ir in self.irreps_out)
        self.head = PQTensorFieldLayer(
            features,
            self.irreps_out,
            p_radius,
            q_in=None,
            group=group,
            lmax_p=2,
            bias=scalar,
            p_radial=p_radial,
            quadrature=quadrature,
        )
        if self.head.unreached:
            raise ValueError(f"no path leads to {self.head.unreached} of {self.irreps_out}")

    def forward(self, signal: Tensor, graph: PQGraph) -> Tensor:
        """The output, shape (V, irreps_out.dim), from the signal (V, Q), divided by b0."""
        output: Tensor = self.head(super().forward(signal, graph), graph)
        return output
