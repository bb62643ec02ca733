r"""Training settings of lesion segmentation.

>>> from tripq.training.config import parse_config
>>> LesionConfig().training.lesion_share
0.5
>>> parse_config("[network]\nn_p_layers = 1", "train.toml", LesionConfig).network.n_p_layers
1
"""

from __future__ import annotations

from dataclasses import field
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from tripq.domain.quadrature import Quadrature
from tripq.so3.paths import Group, Selection
from tripq.tasks.lesions.segmenter import LesionSegmenter
from tripq.training.config import (
    CHECKED,
    NetworkConfig,
    OptimisationConfig,
    TrainingConfig,
    default_of,
)


@dataclass(frozen=True, config=CHECKED)
class SegmenterConfig(NetworkConfig):
    """Arguments of `tripq.tasks.lesions.segmenter.LesionSegmenter`, with its defaults.

    Only the radius is relative to the voxel size, because a fixed radius in mm would include other
    neighbours on other grids.  For voxels of 2 mm it equals the default of the network; for scans
    of several voxel sizes it is relative to the geometric mean of the shortest and the longest
    edge.
    """

    p_radius: Annotated[
        float | None,
        Field(
            gt=0,
            description="radius of the neighbourhood of a voxel in mm; by default 1.5 voxels, "
            "which includes its 26 neighbours",
        ),
    ] = None
    q_features: Annotated[
        str, Field(min_length=1, description="features of the first layer, in the notation of e3nn")
    ] = default_of(LesionSegmenter, "q_features")
    p_features: Annotated[
        str, Field(min_length=1, description="features of the following layers")
    ] = default_of(LesionSegmenter, "p_features")
    n_p_layers: Annotated[
        int, Field(ge=0, description="number of following layers, without the last")
    ] = default_of(LesionSegmenter, "n_p_layers")
    batch_norm: Annotated[bool, Field(description="normalise the features of every layer")] = (
        default_of(LesionSegmenter, "batch_norm")
    )
    q_max: Annotated[
        float,
        Field(
            gt=0,
            description="sqrt(b / 1000) of the highest b-value in s/mm2 in any scan, also in "
            "future ones",
        ),
    ] = default_of(LesionSegmenter, "q_max")
    filter: Annotated[
        str, Field(min_length=1, description="filter of the first layer; see PQTensorFieldLayer")
    ] = default_of(LesionSegmenter, "filter")
    selection: Annotated[
        Selection,
        Field(description="selection of orders in the first layer; see PQTensorFieldLayer"),
    ] = default_of(LesionSegmenter, "selection")
    group: Annotated[
        Group,
        Field(description="symmetries of the network: rotations (SO3), or also reflections (O3)"),
    ] = default_of(LesionSegmenter, "group")
    quadrature: Annotated[
        Quadrature,
        Field(
            description='"integral": scans of several voxel sizes and tables; "sum": of one voxel '
            "size; see PQTensorFieldLayer"
        ),
    ] = default_of(LesionSegmenter, "quadrature")
    antipodal: Annotated[
        bool, Field(description="invariance to the sign of every gradient direction")
    ] = default_of(LesionSegmenter, "antipodal")


@dataclass(frozen=True, config=CHECKED)
class LesionOptimisationConfig(OptimisationConfig):
    """Optimisation settings, with two for lesion voxels, which are rare."""

    positive_weight: Annotated[
        float, Field(gt=0, description="weight of a lesion voxel relative to a healthy voxel")
    ] = 1.0
    lesion_share: Annotated[
        float, Field(ge=0, le=1, description="fraction of the boxes placed on a lesion")
    ] = 0.5


@dataclass(frozen=True, config=CHECKED)
class LesionConfig(TrainingConfig):
    """All training settings of lesion segmentation."""

    network: SegmenterConfig = field(default_factory=SegmenterConfig)
    training: LesionOptimisationConfig = field(default_factory=LesionOptimisationConfig)
