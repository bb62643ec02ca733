"""The equivariant segmentation network, with one logit per voxel."""

from __future__ import annotations

from torch import Tensor

from tripq.domain.graph import PQGraph
from tripq.domain.quadrature import Quadrature
from tripq.filters.radial import Radial
from tripq.infra.e3nn import o3
from tripq.networks.encoder import VoxelNetwork
from tripq.networks.paper import PaperSegmenter, QReduction
from tripq.nn.batch_norm import Normalization
from tripq.nn.layer import Group
from tripq.so3.paths import Selection


class LesionSegmenter(VoxelNetwork):
    """Rotation-equivariant network from a diffusion scan to one logit per voxel.

    The network is the encoder of `tripq.networks.encoder.Encoder` with one scalar output.  The
    logits commute with joint rotations of voxels and directions and are independent of the signs of
    the gradient directions, and the weights are applicable to any gradient table.
    `LesionSegmenter.paper` returns the authors' network instead.

    Parameters
    ----------
    p_radius : float
        Radius of a layer's neighbourhood in mm; 3 mm includes 27 voxels of 2 to 4 mm.
    q_features : Irreps or str
        Features of the first layer.
    p_features : Irreps or str
        Features of each of the following p-layers.
    n_p_layers : int
        Number of these layers, without the last, whose output is the logit.
    normalize : {"scan", "batch", "none"}
        How the features of every layer except the last are normalised: over the voxels of each
        scan, so that contrast and noise of a scanner matter less (the scan must then show the whole
        brain, as in the training); over a batch in training, with fixed statistics afterwards; or
        not.
    q_max : float
        Largest |q| = sqrt(b / b_ref) in any scan.
    filter, selection, antipodal : str, str, bool
        Arguments of the first layer; see `PQTensorFieldLayer`.  With ``filter="q"`` the layer uses
        the voxel itself only; the other filters also sum over the neighbours.  With ``"p"`` only
        the mean signal over the directions is used.
    group : {"SO3", "O3"}
        Symmetries of every layer: rotations, or with ``"O3"`` also reflections, with only the paths
        of matching parities.
    p_radial, q_radial : Radial
        Radial functions of every layer, of the distance of two voxels and of |q|.
    quadrature : {"integral", "sum"}
        Of every layer; see `PQTensorFieldLayer`.  Weights of an integral serve scans of any voxel
        size and table near those of the training; weights of a sum serve those of the training.

    Raises
    ------
    ValueError
        If no path leads to some of the features, which would then always be 0.

    Examples
    --------
    >>> import numpy as np, torch
    >>> q = np.concatenate([np.zeros((1, 3)), np.eye(3)])
    >>> graph = PQGraph.from_grid(np.ones((5, 5, 5)), np.diag([2.0, 2, 2, 1]), q, radius=3.6)
    >>> LesionSegmenter()(torch.rand(125, 4), graph).shape
    torch.Size([125])
    """

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
    ) -> None:
        super().__init__(
            "1x0e",
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
        return super().forward(signal, graph)[:, 0]
