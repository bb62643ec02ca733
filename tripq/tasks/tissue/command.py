"""Interface of the task for the commands `tripq train`, `tripq predict` and `tripq evaluate`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tripq.scans import DWI, Frame, voxel_ml
from tripq.tasks import Bar, Cohort, TaskCommands, Validation
from tripq.tasks.datasets import on_shelf, read_cohort

if TYPE_CHECKING:
    from torch import nn

    from tripq.networks.apply import Model, Prediction
    from tripq.networks.encoder import VoxelNetwork
    from tripq.tasks.tissue.config import TissueConfig
    from tripq.tasks.tissue.scans import LabelledScan
    from tripq.tasks.tissue.scoring import TissueScoring
    from tripq.tasks.tissue.task import TissueTask

_log = logging.getLogger("tripq")


class TissueCommands(TaskCommands["TissueConfig"]):
    """Segmentation into classes for the commands; its methods import what they need."""

    name = "tissue"
    needed = ("lightning", "panoptica", "torchmetrics")
    weights = "tissue-segmenter.safetensors"
    quantity = "probabilities"

    @property
    def config(self) -> type[TissueConfig]:
        """Class of the training settings."""
        from tripq.tasks.tissue.config import TissueConfig

        return TissueConfig

    @property
    def score(self) -> str:
        """Name of the validation score."""
        from tripq.tasks.tissue.task import TissueTask

        return TissueTask.score

    def read_cohort(
        self,
        data: Path,
        truth: Path,
        settings: TissueConfig,
        frame: Frame,
        kept: Path,
        memory: float,
        bar: Bar,
    ) -> Cohort:
        """Find, split and read the scans; tables and headers are checked first."""
        from tripq.tasks.shelf import Shelf
        from tripq.tasks.tissue.scans import (
            LabelledFiles,
            LabelledScan,
            common_classes,
            read_labelled,
        )

        found = LabelledFiles.find(data, truth, frame)
        classes = common_classes(found.files)
        shelf = Shelf(kept, memory, partial(LabelledScan, classes=classes))
        of_classes = partial(read_labelled, classes=classes, frame=frame)
        read = on_shelf(of_classes, shelf, frame, *classes.names)
        cohort = read_cohort(
            data, found, settings.split, read, bar, quadrature=settings.network.quadrature
        )
        present = {int(label) for scan in cohort.training for label in np.unique(scan.labels)}
        for number, name in enumerate(classes.names):
            if number not in present:
                _log.warning(
                    "%s: no voxel of the training scans is of the class %s: it cannot be learned.",
                    *(data, name),
                )
        return cohort

    def build_network(self, settings: TissueConfig, cohort: Cohort) -> VoxelNetwork:
        """A network with one scalar per class."""
        from tripq.networks.encoder import VoxelNetwork
        from tripq.training.configured import build_encoder

        constructor = partial(VoxelNetwork, f"{_n_classes(cohort)}x0e")
        return build_encoder(constructor, settings.network, cohort.voxel_sizes)

    def build_task(self, settings: TissueConfig, cohort: Cohort) -> TissueTask:
        """The class of every voxel."""
        from tripq.tasks.tissue.task import TissueTask

        return TissueTask.of(cohort.training, _n_classes(cohort), settings.training.balance)

    def validate(
        self,
        network: nn.Module,
        scans: Sequence[LabelledScan],
        device: str,
        report: Callable[[int, int], None],
    ) -> Validation:
        """Compute Dice and volumes of the classes."""
        from tripq.tasks.scoring import json_columns
        from tripq.tasks.tissue.scoring import LabelledMap, evaluate_maps

        maps = []
        for number, scan in enumerate(scans):
            report(number, len(scans))
            found = self.predict(network, scan.dwi, device=device).argmax(axis=1).astype(np.int8)
            size = voxel_ml(scan.dwi.affine)
            maps.append(LabelledMap(scan.name, found, scan.labels, size, scan.classes))
        evaluation = evaluate_maps(maps)

        def write_page(path: Path, shown: Mapping[str, str]) -> None:
            about = {
                **shown,
                "Scores": "of the scans used for the choice of the network; therefore too "
                "optimistic",
            }
            evaluation.write_page(path, about, "Validation of the trained network")

        classes, pooled = scans[0].classes, evaluation.rows[-1].columns
        of_classes = ", ".join(
            f"{name} {pooled[f'{label}_dice']:.3f}".replace("nan", "n/a")
            for name, label in zip(classes.names, classes.labels, strict=True)
        )
        return Validation(
            classes.notes,
            {row.name: json_columns(row) for row in evaluation.rows},
            f"On {len(scans)} validation scans: mean Dice {pooled['mean_dice']:.3f} "
            f"({of_classes}).",
            write_page,
        )

    def predict(self, network: nn.Module, dwi: DWI, /, **how: Any) -> NDArray[np.float32]:
        """Probabilities of the classes, (V, C)."""
        from scipy.special import softmax

        from tripq.networks.blocks import predict_blocks

        probabilities: NDArray[np.float32] = softmax(predict_blocks(network, dwi, **how), axis=1)
        return probabilities

    def maps(self, model: Model, prediction: Prediction) -> Mapping[str, NDArray[Any]]:
        """The most probable class, numbered from 1, and the probability of every class."""
        from tripq.networks.checkpoint import CheckpointError
        from tripq.tasks.tissue.classes import Classes
        from tripq.tasks.tissue.scans import ENDING

        classes, output = Classes.of(model), prediction.output
        if output.shape[1:] != (len(classes.names),):
            raise CheckpointError(
                f"{model.path}: {len(classes.names)} classes, but the network gives "
                f"{output.shape[1:]} values in a voxel."
            )
        probabilities = zip(classes.labels, output.T, strict=True)
        return {
            ENDING: (output.argmax(axis=1) + 1).astype(np.uint8),
            **{f"label-{label}_probseg": values for label, values in probabilities},
        }

    def sidecars(
        self, model: Model, prediction: Prediction
    ) -> Mapping[str, str | Mapping[str, Any]]:
        """The table of names, and a description of every map."""
        from tripq.tasks.tissue.classes import Classes
        from tripq.tasks.tissue.scans import ENDING

        classes = Classes.of(model)
        about = {
            f"label-{label}_probseg.json": {
                "Description": f"Probability of the class {name}, estimated from diffusion MRI",
                "Manual": False,
            }
            for name, label in zip(classes.names, classes.labels, strict=True)
        }
        return {
            f"{ENDING}.tsv": classes.table,
            f"{ENDING}.json": {
                "Description": "Most probable class of every voxel, estimated from diffusion MRI; "
                "0 outside the brain",
                "Manual": False,
            },
            **about,
        }

    def scoring(
        self,
        threshold: float | None = None,
        min_volume: float | None = None,
        choose_limits: bool = False,
    ) -> TissueScoring:
        """Dice and volume of every class."""
        from tripq.tasks.scoring import reject_limits
        from tripq.tasks.tissue.scoring import TissueScoring

        reject_limits("label images", threshold, min_volume, choose_limits)
        return TissueScoring()


def _n_classes(cohort: Cohort) -> int:
    return len(cohort.training[0].classes.names)
