r"""Training settings of the segmentation of tissue.

>>> from tripq.training.config import parse_config
>>> TissueConfig().training.balance
0.5
>>> parse_config("[network]\nn_p_layers = 1", "train.toml", TissueConfig).network.n_p_layers
1
"""

from __future__ import annotations

from dataclasses import field
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from tripq.tasks.tissue.task import TissueTask
from tripq.training.config import (
    CHECKED,
    EncoderConfig,
    SegmentationOptimisationConfig,
    TrainingConfig,
    default_of,
)


@dataclass(frozen=True, config=CHECKED)
class TissueOptimisationConfig(SegmentationOptimisationConfig):
    """Optimisation settings, with two for rare classes."""

    balance: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="weights of the classes: 0 for equal voxels, 1 for equal classes",
        ),
    ] = default_of(TissueTask, "balance")
    rare_share: Annotated[
        float,
        Field(ge=0, le=1, description="fraction of the boxes placed on the rarest class of a scan"),
    ] = 0.25

    @property
    def focus_share(self) -> float:
        """Fraction of the boxes placed on the rarest class of a scan."""
        return self.rare_share


@dataclass(frozen=True, config=CHECKED)
class TissueConfig(TrainingConfig):
    """All training settings of the segmentation of tissue."""

    network: EncoderConfig = field(default_factory=EncoderConfig)
    training: TissueOptimisationConfig = field(default_factory=TissueOptimisationConfig)
