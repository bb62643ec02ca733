r"""Settings of a training to find lesions.

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

    Only the radius follows the voxels of the scans: a fixed one in mm would reach other neighbours
    on other grids.  On voxels of 2 mm it is the default of the network, too.
    """

    p_radius: Annotated[
        float | None,
        Field(
            gt=0,
            description="radius of the neighbourhood of a voxel in mm; by default 1.8 voxels, "
            "which reach the 26 around it",
        ),
    ] = None
    q_features: Annotated[
        str, Field(min_length=1, description="features of the first layer, as e3nn writes them")
    ] = default_of(LesionSegmenter, "q_features")
    p_features: Annotated[
        str, Field(min_length=1, description="features of the layers that follow")
    ] = default_of(LesionSegmenter, "p_features")
    n_p_layers: Annotated[
        int, Field(ge=0, description="how many layers follow, without the last")
    ] = default_of(LesionSegmenter, "n_p_layers")
    batch_norm: Annotated[bool, Field(description="normalise the features of every layer")] = (
        default_of(LesionSegmenter, "batch_norm")
    )
    q_max: Annotated[
        float,
        Field(
            gt=0,
            description="sqrt(b / 1000) of the highest b-value in s/mm2 that any scan has, now or "
            "later",
        ),
    ] = default_of(LesionSegmenter, "q_max")
    filter: Annotated[
        str, Field(min_length=1, description="of the first layer; see PQTensorFieldLayer")
    ] = default_of(LesionSegmenter, "filter")
    selection: Annotated[
        Selection, Field(description="which orders the first layer joins; see PQTensorFieldLayer")
    ] = default_of(LesionSegmenter, "selection")
    group: Annotated[
        Group, Field(description="symmetries of the network: rotations, or reflections too")
    ] = default_of(LesionSegmenter, "group")
    antipodal: Annotated[
        bool, Field(description="whether the sign of a gradient direction means nothing")
    ] = default_of(LesionSegmenter, "antipodal")


@dataclass(frozen=True, config=CHECKED)
class LesionOptimisationConfig(OptimisationConfig):
    """The same with what concerns lesion voxels, which are rare."""

    positive_weight: Annotated[
        float, Field(gt=0, description="how many healthy voxels a lesion voxel counts for")
    ] = 1.0
    lesion_share: Annotated[
        float, Field(ge=0, le=1, description="share of the boxes that lie on a lesion")
    ] = 0.5


@dataclass(frozen=True, config=CHECKED)
class LesionConfig(TrainingConfig):
    """All settings of a training to find lesions."""

    network: SegmenterConfig = field(default_factory=SegmenterConfig)
    training: LesionOptimisationConfig = field(default_factory=LesionOptimisationConfig)
