r"""Training settings of the prediction of fibres.

>>> from tripq.training.config import parse_config
>>> FibreConfig().training.learning_rate
0.004
>>> parse_config("[network]\norder = 6", "train.toml", FibreConfig).network.order
6
"""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from tripq.networks.encoding import Encoding
from tripq.tasks.fibres.network import FibreNetwork
from tripq.training.augment import Augmentation
from tripq.training.config import (
    CHECKED,
    Features,
    ShellConfig,
    ShellOptimisationConfig,
    TrainingConfig,
    default_of,
)


@dataclass(frozen=True, config=CHECKED)
class FibreNetworkConfig(ShellConfig):
    """Arguments of `tripq.tasks.fibres.network.FibreNetwork`, with its defaults."""

    encoding: ClassVar[type[Encoding] | None] = FibreNetwork

    p_radius: Annotated[
        float,
        Field(ge=0, description="radius of the neighbourhood of a voxel in mm; 0 for none"),
    ] = default_of(FibreNetwork, "p_radius")
    p_features: Features = default_of(FibreNetwork, "p_features")
    n_p_layers: Annotated[
        int, Field(ge=1, description="number of layers that take a neighbourhood")
    ] = default_of(FibreNetwork, "n_p_layers")
    order: Annotated[
        int, Field(ge=2, le=8, description="highest order of the distributions: 2, 4, 6 or 8")
    ] = default_of(FibreNetwork, "order")
    fit_order: Annotated[
        int, Field(ge=2, le=8, description="highest order of the signal: 2, 4, 6 or 8")
    ] = default_of(FibreNetwork, "fit_order")
    channels: Annotated[
        int, Field(ge=1, description="number of functions on the sphere in every voxel")
    ] = default_of(FibreNetwork, "channels")
    n_products: Annotated[
        int, Field(ge=1, description="number of layers that multiply these functions")
    ] = default_of(FibreNetwork, "n_products")


@dataclass(frozen=True, config=CHECKED)
class FibreOptimisationConfig(ShellOptimisationConfig):
    """Optimisation settings, with those for directions and boxes."""

    dropped: Annotated[
        float,
        Field(ge=0, lt=1, description="largest share of the directions that a box leaves out"),
    ] = 0.65
    white_matter_share: Annotated[
        float, Field(ge=0, le=1, description="fraction of boxes placed on white matter")
    ] = 0.5

    @property
    def focus_share(self) -> float:
        """Fraction of the boxes placed on white matter."""
        return self.white_matter_share

    @property
    def augmentation(self) -> Augmentation:
        """Boxes with some of the directions, so that one network serves tables of other numbers."""
        return Augmentation(noise=0.0, bias=0.0, b0_error=0.0, dropped=self.dropped)


@dataclass(frozen=True, config=CHECKED)
class FibreConfig(TrainingConfig):
    """All training settings of the prediction of fibres."""

    network: FibreNetworkConfig = field(default_factory=FibreNetworkConfig)
    training: FibreOptimisationConfig = field(default_factory=FibreOptimisationConfig)
