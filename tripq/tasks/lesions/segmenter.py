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
    p_radius, q_features, p_features, n_p_layers, normalize, q_max, filter, selection, group, \
antipodal, p_radial, q_radial, quadrature, b0_contrast
        As in `tripq.networks.encoder.VoxelNetwork`; the output of its last layer is the logit.  By
        default features are normalised over the surroundings of each voxel: lesions are rare.

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
        normalize: Normalization = "local",
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
            b0_contrast=b0_contrast,
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
