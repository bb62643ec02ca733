"""Interface of the task for the commands `tripq train` and `tripq predict`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tripq.scans import DWI, Frame, voxel_ml
from tripq.tasks import Bar, Cohort, TaskCommands, Validation
from tripq.tasks.datasets import on_shelf, read_cohort
from tripq.tasks.lesions.names import HEALTHY_HEADS, LABEL

if TYPE_CHECKING:
    from torch import nn

    from tripq.networks.apply import Model, Prediction
    from tripq.tasks.lesions.config import LesionConfig
    from tripq.tasks.lesions.datasets import LabelledSubject
    from tripq.tasks.lesions.scoring import LesionScoring
    from tripq.tasks.lesions.segmenter import LesionSegmenter
    from tripq.tasks.lesions.task import LesionTask


class LesionCommands(TaskCommands["LesionConfig"]):
    """Lesion segmentation for the commands; its methods import what they need."""

    name = "lesions"
    needed = ("lightning", "torchmetrics")
    weights = "lesion-segmenter.safetensors"
    quantity = "probabilities"

    @property
    def config(self) -> type[LesionConfig]:
        """Class of the training settings."""
        from tripq.tasks.lesions.config import LesionConfig

        return LesionConfig

    @property
    def score(self) -> str:
        """Name of the validation score."""
        from tripq.tasks.lesions.task import LesionTask

        return LesionTask.score

    def read_cohort(
        self,
        data: Path,
        truth: Path,
        settings: LesionConfig,
        frame: Frame,
        kept: Path,
        memory: float,
        bar: Bar,
    ) -> Cohort:
        """Find, split and read the scans."""
        from tripq.tasks.lesions.datasets import LabelledSubject, find_labelled, read_labelled
        from tripq.tasks.shelf import Shelf
        from tripq.training.config import ConfigError

        found = find_labelled(data, truth, frame)
        shelf = Shelf(kept, memory, LabelledSubject)
        read = on_shelf(partial(read_labelled, frame=frame), shelf, frame)
        cohort = read_cohort(
            data, found, settings.split, read, bar, quadrature=settings.network.quadrature
        )
        if not any(scan.lesion.any() for scan in cohort.validation):
            raise ConfigError(
                f"[split]: the validation participants ({', '.join(cohort.held_out)}) have no "
                "lesion voxel: choose others (validation), or another seed."
            )
        return cohort

    def build_network(self, settings: LesionConfig, cohort: Cohort) -> LesionSegmenter:
        """The network of lesions."""
        from tripq.tasks.lesions.segmenter import LesionSegmenter
        from tripq.training.configured import build_encoder

        return build_encoder(LesionSegmenter, settings.network, cohort.voxel_sizes)

    def build_task(self, settings: LesionConfig, cohort: Cohort) -> LesionTask:
        """Whether a voxel belongs to a lesion."""
        from tripq.tasks.lesions.task import LesionTask

        return LesionTask(settings.training.positive_weight)

    def validate(
        self,
        network: nn.Module,
        scans: Sequence[LabelledSubject],
        device: str,
        report: Callable[[int, int], None],
    ) -> Validation:
        """Compute the scores, the threshold with the highest Dice, and the minimum volume.

        The minimum volume is that with the highest F1 of whole lesions at this threshold.
        """
        from tripq.tasks.lesions import segmentation
        from tripq.tasks.lesions.evaluated import EvaluatedSubject, best_limits
        from tripq.tasks.lesions.pages.evaluation import write_evaluation_report
        from tripq.tasks.lesions.scores import LesionCounts, score

        subjects = []
        for number, scan in enumerate(scans):
            report(number, len(scans))
            probability = segmentation.segment(network, scan.dwi, device=device)
            subjects.append(
                EvaluatedSubject(
                    scan.name, scan.dwi.mask, probability, scan.lesion, voxel_ml(scan.dwi.affine)
                )
            )
        probabilities = np.concatenate([subject.probability for subject in subjects])
        lesions = np.concatenate([subject.lesion for subject in subjects])
        threshold, min_volume = best_limits(subjects)
        found = [subject.mark(threshold, min_volume)[subject.mask] for subject in subjects]
        scores = score(probabilities, lesions, threshold, found=np.concatenate(found))
        counts = sum(
            (subject.count(threshold, min_volume) for subject in subjects),
            start=LesionCounts(0, 0, 0),
        )
        smallest = f" in {min_volume:g} ml or more" if min_volume else ""

        def write_page(path: Path, shown: Mapping[str, str]) -> None:
            about = {
                **shown,
                "Scores": "of the subjects used for the choice of the network, its threshold and "
                "its minimum volume; therefore too optimistic",
            }
            title = "Validation of the trained network"
            write_evaluation_report(
                path,
                subjects,
                threshold,
                about,
                min_volume=min_volume,
                chosen_here=True,
                title=title,
            )

        return Validation(
            {"threshold": repr(threshold), "min_volume_ml": repr(min_volume)},
            {**asdict(scores), "lesion_f1": counts.f1},
            f"On {len(subjects)} validation scans: average precision "
            f"{scores.average_precision:.3f}; Dice {scores.dice:.3f} and F1 of lesions "
            f"{counts.f1:.3f} at a probability of {threshold:.3g} or more{smallest}.",
            write_page,
        )

    def predict(self, network: nn.Module, dwi: DWI, /, **how: Any) -> NDArray[np.float32]:
        """Probability of a lesion."""
        from tripq.tasks.lesions import segmentation

        return segmentation.segment(network, dwi, **how)

    def maps(self, model: Model, prediction: Prediction) -> Mapping[str, NDArray[Any]]:
        """The probability, and the voxels of the lesion candidates."""
        from tripq.tasks.lesions import segmentation
        from tripq.tasks.lesions.listing import label_candidates

        lesions = segmentation.Model.of(model)
        marked = label_candidates(
            prediction.dwi, prediction.output, lesions.threshold, lesions.min_volume
        )
        return {
            f"label-{LABEL}_probseg": prediction.output,
            f"label-{LABEL}_mask": marked > 0,
        }

    def write_page(
        self,
        path: Path,
        model: Model,
        prediction: Prediction,
        maps: Mapping[str, NDArray[Any]],
        settings: Mapping[str, str],
    ) -> None:
        """Write the page of `tripq segment`."""
        from tripq.tasks.lesions import segmentation
        from tripq.tasks.lesions.pages.subject import write_subject_report

        lesions = segmentation.Model.of(model)
        write_subject_report(
            path,
            prediction.dwi,
            prediction.output,
            threshold=lesions.threshold,
            min_volume=lesions.min_volume,
            settings={**settings, HEALTHY_HEADS: lesions.healthy_heads},
        )

    def scoring(
        self,
        threshold: float | None = None,
        min_volume: float | None = None,
        choose_limits: bool = False,
    ) -> LesionScoring:
        """By voxel and by lesion."""
        from tripq.tasks.lesions.scoring import LesionScoring

        return LesionScoring(threshold, min_volume, choose_limits)
