"""The network of Müller et al. (arXiv:2102.06942)."""

from __future__ import annotations

from functools import partial
from typing import Literal

from torch import Tensor, nn

from tripq.domain.graph import PQGraph
from tripq.filters.radial import Radial
from tripq.networks.signal import LARGEST_RATIO
from tripq.nn.block import Block
from tripq.nn.bound import Bindable
from tripq.nn.layer import PQTensorFieldLayer
from tripq.nn.reduce import QLengthWeightedMean, QMean

QReduction = Literal["length-weighted", "mean", "layer"]


class PaperSegmenter(Bindable):
    """The five layers of Müller et al. (arXiv:2102.06942, section 4), as their code has them.

    One layer on p- and q-space to seven scalars and four vectors, a reduction of q-space, and
    layers on p-space to 20x0 + 5x1, 10x0 + 3x1, 5x0 + 2x1 and the logit, each but the last with
    batch normalisation and a gate.  As in theirs, features have no parity: it commutes with
    rotations, not with reflections.

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
        layer = partial(PQTensorFieldLayer, p_radial=Radial(), quadrature="sum")
        block = partial(Block, normalize="batch", p_radial=Radial(), quadrature="sum")
        self.pq_block = block(
            "1x0e",
            "7x0e + 4x1o",
            p_radius,
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
            self.reduction = layer(features, features, 0.0, q_max=q_max, q_out=None, lmax_q=2)
        else:
            raise ValueError(
                f'q_reduction is one of "length-weighted", "mean", "layer", not {q_reduction!r}'
            )
        blocks = []
        for irreps in ("20x0e + 5x1o", "10x0e + 3x1o", "5x0e + 2x1o"):
            blocks.append(block(features, irreps, p_radius, q_in=None))
            features = blocks[-1].irreps_out
        self.p_blocks = nn.ModuleList(blocks)
        self.head = layer(features, "1x0e", p_radius, q_in=None, bias=True)

    def forward(self, signal: Tensor, graph: PQGraph) -> Tensor:
        """Logits of shape (V,) from the signal (V, Q), divided by b0."""
        x = self.reduction(self.pq_block(signal.clamp(max=LARGEST_RATIO)[..., None], graph), graph)
        for block in self.p_blocks:
            x = block(x, graph)
        logits: Tensor = self.head(x, graph)
        return logits[:, 0]
