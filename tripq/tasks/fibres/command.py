"""Interface of the task for the commands `tripq train`, `tripq predict` and `tripq evaluate`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tripq.scans import DWI, Frame
from tripq.tasks import Bar, Cohort, TaskCommands, Validation
from tripq.tasks.datasets import read_all
from tripq.tasks.fibres.names import FODF, PEAKS, describe_fodf, describe_peaks

if TYPE_CHECKING:
    from torch import nn

    from tripq.networks.apply import Model, Prediction
    from tripq.tasks.fibres.config import FibreConfig
    from tripq.tasks.fibres.network import FibreNetwork
    from tripq.tasks.fibres.scans import FibreScan
    from tripq.tasks.fibres.scoring import FibreScoring
    from tripq.tasks.fibres.task import FibreTask


class FibreCommands(TaskCommands["FibreConfig"]):
    """Prediction of fibres for the commands; its methods import what they need."""

    name = "fibres"
    needed = ("lightning", "torchmetrics")
    weights = "fibres.safetensors"
    quantity = "coefficients"

    @property
    def config(self) -> type[FibreConfig]:
        """Class of the training settings."""
        from tripq.tasks.fibres.config import FibreConfig

        return FibreConfig

    @property
    def score(self) -> str:
        """Name of the validation score."""
        from tripq.tasks.fibres.task import FibreTask

        return FibreTask.score

    def read_cohort(
        self,
        data: Path,
        truth: Path,
        settings: FibreConfig,
        frame: Frame,
        kept: Path,
        memory: float,
        bar: Bar,
    ) -> Cohort:
        """Find, split and read the scans with known fibres, all of them in memory."""
        from tripq.tasks.fibres.scans import FibreFiles

        quadrature = settings.network.quadrature
        return read_all(
            FibreFiles, data, truth, frame, memory, settings.split, bar, quadrature=quadrature
        )

    def build_network(self, settings: FibreConfig, cohort: Cohort) -> FibreNetwork:
        """A network for orientation distributions."""
        from tripq.tasks.fibres.network import FibreNetwork
        from tripq.training.configured import build_network

        return build_network(FibreNetwork, asdict(settings.network))

    def build_task(self, settings: FibreConfig, cohort: Cohort) -> FibreTask:
        """Orientation distributions up to the order of the network."""
        from tripq.tasks.fibres.task import FibreTask

        return FibreTask(settings.network.order)

    def validate(
        self,
        network: nn.Module,
        scans: Sequence[FibreScan],
        device: str,
        report: Callable[[int, int], None],
    ) -> Validation:
        """Compare distributions and their peaks with the known ones."""
        import torch

        from tripq.networks.blocks import predict_blocks
        from tripq.tasks.fibres.peaks import find_peaks
        from tripq.tasks.fibres.scoring import FibreMap, score_fibres
        from tripq.tasks.fibres.task import FibreTask, white_matter
        from tripq.tasks.scoring import json_columns

        task = FibreTask(int(network.order))  # type: ignore[arg-type]  # a FibreNetwork
        read = []
        for number, scan in enumerate(scans):
            report(number, len(scans))
            found, known = predict_blocks(network, scan.dwi, device=device), task.target(scan)
            peaks = find_peaks(known)
            peaks[~white_matter(torch.from_numpy(known)).numpy()] = 0
            read.append(FibreMap(scan.name, found, peaks, known))
        evaluation = score_fibres(read)

        def write_page(path: Path, shown: Mapping[str, str]) -> None:
            evaluation.write_page(path, shown, "Validation of the trained network")

        pooled = evaluation.rows[-1].columns
        return Validation(
            {},
            {row.name: json_columns(row) for row in evaluation.rows},
            f"On {len(scans)} validation scans: angular correlation "
            f"{pooled['angular_correlation']:.3f}, error of single fibres "
            f"{pooled['single_error']:.1f} degrees, at crossings {pooled['crossing_error']:.1f}.",
            write_page,
        )

    def predict(self, network: nn.Module, dwi: DWI, /, **how: Any) -> NDArray[np.float32]:
        """Orientation distributions of a scan; see `tripq.networks.blocks.predict_blocks`."""
        from tripq.networks.blocks import predict_blocks
        from tripq.scans.response import scale_by_response

        return predict_blocks(network, scale_by_response(dwi), **how)

    def maps(self, model: Model, prediction: Prediction) -> Mapping[str, NDArray[Any]]:
        """Orientation distributions in MRtrix' harmonics, and their peaks."""
        from tripq.so3.mrtrix import to_mrtrix
        from tripq.tasks.fibres.peaks import find_peaks

        peaks = find_peaks(prediction.output)
        return {FODF: to_mrtrix(prediction.output), PEAKS: peaks.reshape(len(peaks), -1)}

    def sidecars(
        self, model: Model, prediction: Prediction
    ) -> Mapping[str, str | Mapping[str, Any]]:
        """Basis, order and axes of both maps, and where they come from."""
        about = {
            "Description": "tripq FibreNetwork",
            "Parameters": {
                "WeightsSHA256": model.sha256,
                "Shells": [round(shell.b_value) for shell in prediction.dwi.shells],
            },
        }
        n_coefficients = prediction.output.shape[1]
        return {
            f"{FODF}.json": describe_fodf(n_coefficients, about),
            f"{PEAKS}.json": describe_peaks(about),
        }

    def shown(
        self, prediction: Prediction, maps: Mapping[str, NDArray[Any]]
    ) -> Mapping[str, NDArray[Any]]:
        """Integral of the distribution, and the size of all that is not isotropic."""
        from tripq.so3.mrtrix import ORTHONORMAL

        return {
            "white matter": prediction.output[:, 0] * np.float32(ORTHONORMAL),
            "anisotropic part": np.linalg.norm(prediction.output[:, 1:], axis=1),
        }

    def scoring(
        self,
        threshold: float | None = None,
        min_volume: float | None = None,
        choose_limits: bool = False,
    ) -> FibreScoring:
        """Orientation distributions and their peaks against known ones."""
        from tripq.tasks.fibres.scoring import FibreScoring
        from tripq.tasks.scoring import reject_limits

        reject_limits("maps of fibres", threshold, min_volume, choose_limits)
        return FibreScoring()
