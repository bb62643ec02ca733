"""A task of another package: mean diffusivity, as its network gives it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tripq.networks.apply import Model, Prediction
from tripq.tasks import Cohort, TaskCommands, Validation
from tripq.training.config import TrainingConfig


class DiffusivityCommands(TaskCommands[TrainingConfig]):
    """Maps, but no training."""

    name = "mean-diffusivity"
    needed = ()
    weights = "diffusivity.safetensors"
    quantity = "diffusivities"
    units: Mapping[str, str] = {"md": "µm²/ms"}
    scored = "md"

    @property
    def config(self) -> type[TrainingConfig]:
        """No settings of its own."""
        return TrainingConfig

    @property
    def score(self) -> str:
        """Of the validation."""
        return "mean absolute error"

    def read_cohort(self, *_: Any) -> Cohort:
        """Not here."""
        raise NotImplementedError

    def build_network(self, *_: Any) -> Any:
        """Not here."""
        raise NotImplementedError

    def build_task(self, *_: Any) -> Any:
        """Not here."""
        raise NotImplementedError

    def validate(self, network: Any, scans: Sequence[Any], *_: Any) -> Validation:
        """Not here."""
        raise NotImplementedError

    def maps(self, model: Model, prediction: Prediction) -> Mapping[str, NDArray[Any]]:
        """Mean diffusivity, and whether it is positive."""
        values = prediction.output[:, 0]
        return {"md": values, "positive": np.asarray(values > 0)}
