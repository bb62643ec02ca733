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

from tripq.tasks.lesions.segmenter import LesionSegmenter
from tripq.training.config import (
    CHECKED,
    EncoderConfig,
    Normalize,
    SegmentationOptimisationConfig,
    TrainingConfig,
    default_of,
)


@dataclass(frozen=True, config=CHECKED)
class LesionOptimisationConfig(SegmentationOptimisationConfig):
    """Optimisation settings, with two for lesion voxels, which are rare."""

    positive_weight: Annotated[
        float, Field(gt=0, description="weight of a lesion voxel relative to a healthy voxel")
    ] = 1.0
    lesion_share: Annotated[
        float, Field(ge=0, le=1, description="fraction of the boxes placed on a lesion")
    ] = 0.5

    @property
    def focus_share(self) -> float:
        """Fraction of the boxes placed on a lesion."""
        return self.lesion_share


@dataclass(frozen=True, config=CHECKED)
class LesionNetworkConfig(EncoderConfig):
    """Arguments of `tripq.tasks.lesions.segmenter.LesionSegmenter`, with its defaults."""

    normalize: Normalize = default_of(LesionSegmenter, "normalize")


@dataclass(frozen=True, config=CHECKED)
class LesionConfig(TrainingConfig):
    """All training settings of lesion segmentation."""

    network: LesionNetworkConfig = field(default_factory=LesionNetworkConfig)
    training: LesionOptimisationConfig = field(default_factory=LesionOptimisationConfig)
