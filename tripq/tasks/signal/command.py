"""Interface of the task for the commands `tripq train`, `tripq predict` and `tripq evaluate`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from tripq.scans import B_REFERENCE, DWI, Frame
from tripq.scans.shells import TENSOR_DIRECTIONS, count_directions
from tripq.scans.tensor import tensor_maps
from tripq.tasks import Bar, Cohort, TaskCommands, Validation
from tripq.tasks.datasets import read_all
from tripq.tasks.signal.names import FA, MD, UNIT_OF_MD, describe_tensor

if TYPE_CHECKING:
    from torch import nn

    from tripq.networks.apply import Model, Prediction
    from tripq.tasks.signal.config import PretrainingConfig, SignalConfig
    from tripq.tasks.signal.encoder import SignalEncoder
    from tripq.tasks.signal.network import SignalPredictor
    from tripq.tasks.signal.scans import MeasuredScan
    from tripq.tasks.signal.scoring import SignalScoring
    from tripq.tasks.signal.task import SignalTask


Settings = TypeVar("Settings", bound="SignalConfig | PretrainingConfig")


class _PredictionCommands(TaskCommands[Settings]):
    """Prediction of signal for the commands; its methods import what they need."""

    needed = ("lightning", "torchmetrics")
    quantity = "signals"
    predicts_signal = True
    units: ClassVar[Mapping[str, str]] = {"MD": UNIT_OF_MD}

    @property
    def score(self) -> str:
        """Name of the validation score."""
        from tripq.tasks.signal.task import SignalTask

        return SignalTask.score

    def read_cohort(
        self,
        data: Path,
        truth: Path,
        settings: Settings,
        frame: Frame,
        kept: Path,
        memory: float,
        bar: Bar,
    ) -> Cohort:
        """Find, split and read the scans, all of them in memory; their signal is the truth."""
        from tripq.tasks.signal.scans import MeasuredFiles

        quadrature = settings.network.quadrature
        return read_all(
            MeasuredFiles, data, truth, frame, memory, settings.split, bar, quadrature=quadrature
        )

    def build_task(self, settings: Settings, cohort: Cohort) -> SignalTask:
        """The signal of hidden directions."""
        from tripq.tasks.signal.task import SignalTask

        return SignalTask()

    def validate(
        self,
        network: nn.Module,
        scans: Sequence[MeasuredScan],
        device: str,
        report: Callable[[int, int], None],
    ) -> Validation:
        """Compute the errors at directions that are not shown, and those of the fit alone."""
        from tripq.report.scores import agreement_figure, write_scores_report
        from tripq.tasks.scoring import json_columns
        from tripq.tasks.signal.scoring import held_out_errors

        rows, found, known = held_out_errors(network, scans, device, report)
        columns = {
            "shown": "directions shown",
            "rms_error": "RMS error",
            "fit_rms_error": "RMS error of harmonics alone",
        }

        def write_page(path: Path, shown: Mapping[str, str]) -> None:
            write_scores_report(
                path,
                [(row.name, row.columns) for row in rows],
                columns,
                shown,
                title="Validation of the trained network",
                figure=agreement_figure(found, known),
                remark="Errors of the signal divided by b0, at the directions that are not shown, "
                "of the scans used for the choice of the network; therefore too optimistic.",
            )

        pooled = rows[-1].columns
        return Validation(
            {},
            {row.name: json_columns(row) for row in rows},
            f"On {len(scans)} validation scans: RMS error {pooled['rms_error']:.4f} of the signal "
            f"divided by b0, {pooled['fit_rms_error']:.4f} by harmonics alone.",
            write_page,
        )

    def predict(
        self, network: nn.Module, dwi: DWI, /, *, denoise: bool = False, **how: Any
    ) -> NDArray[np.float32]:
        """The signal along directions, or with `denoise` every volume from the others.

        Raises
        ------
        DWIError
            If there are too few directions to predict each from others.
        ValueError
            If the network cannot be used to denoise.
        """
        if not denoise:
            return super().predict(network, dwi, **how)
        from tripq.networks.blocks import predict_blocks
        from tripq.tasks.signal.denoise import Denoiser, check_denoising
        from tripq.tasks.signal.network import SignalPredictor

        if not isinstance(network, SignalPredictor):
            raise ValueError(f"{type(network).__name__}: only a SignalPredictor can denoise")
        check_denoising(dwi)
        return predict_blocks(Denoiser(network).eval(), dwi, **how)

    def maps(self, model: Model, prediction: Prediction) -> Mapping[str, NDArray[Any]]:
        """Mean signal, FA and MD if there are 6 directions, and what denoising removed.

        The last map, ``residual``, is the root mean square over the directions, divided by b0.
        """
        dwi = self.signal(prediction)
        maps: dict[str, NDArray[Any]] = {"mean": dwi.signal[:, 1:].mean(axis=1)}
        if count_directions(dwi.q[1:]) >= TENSOR_DIRECTIONS:
            maps[FA], maps[MD] = tensor_maps(dwi)
        if prediction.denoised:
            removed = (prediction.dwi.signal - dwi.signal)[:, 1:]
            maps["residual"] = np.sqrt(np.square(removed).mean(axis=1))
        return maps

    def sidecars(
        self, model: Model, prediction: Prediction
    ) -> Mapping[str, str | Mapping[str, Any]]:
        """The model and the unit of FA and MD, if there are 6 directions."""
        q = _directions(prediction)
        return describe_tensor() if count_directions(q[1:]) >= TENSOR_DIRECTIONS else {}

    def shown(
        self, prediction: Prediction, maps: Mapping[str, NDArray[Any]]
    ) -> Mapping[str, NDArray[Any]]:
        """All maps, by short names."""
        short = {FA: "FA", MD: "MD"}
        return {short.get(ending, ending): values for ending, values in maps.items()}

    def signal(self, prediction: Prediction) -> DWI:
        """The predicted scan; noise of b0 remains."""
        dwi = prediction.dwi
        q = _directions(prediction)
        notes = [f"b0 is written as measured (number of volumes averaged: {dwi.b0_volumes})."]
        if prediction.denoised:
            notes.append("Each volume was predicted from other directions of its shell.")
        return replace(
            dwi,
            signal=prediction.output.clip(min=0),
            q=q,
            b_values=B_REFERENCE * (q**2).sum(axis=1),
            notes=(*prediction.notes, *notes),
        )

    def scoring(
        self,
        threshold: float | None = None,
        min_volume: float | None = None,
        choose_limits: bool = False,
    ) -> SignalScoring:
        """Predicted scans against measured ones, at the directions of both."""
        from tripq.tasks.scoring import reject_limits
        from tripq.tasks.signal.scoring import SignalScoring

        reject_limits("predicted signals", threshold, min_volume, choose_limits)
        return SignalScoring()


class SignalCommands(_PredictionCommands["SignalConfig"]):
    """Prediction of signal by the network that predicts best."""

    name = "signal"
    weights = "signal-predictor.safetensors"

    @property
    def config(self) -> type[SignalConfig]:
        """Class of the training settings."""
        from tripq.tasks.signal.config import SignalConfig

        return SignalConfig

    def build_network(self, settings: SignalConfig, cohort: Cohort) -> SignalPredictor:
        """A network for the signal along any direction."""
        from tripq.tasks.signal.network import SignalPredictor
        from tripq.training.configured import build_network

        return build_network(SignalPredictor, asdict(settings.network))


class PretrainingCommands(_PredictionCommands["PretrainingConfig"]):
    """Prediction of signal by an encoder that other tasks can start from."""

    name = "pretraining"
    weights = "signal-encoder.safetensors"

    @property
    def config(self) -> type[PretrainingConfig]:
        """Class of the training settings."""
        from tripq.tasks.signal.config import PretrainingConfig

        return PretrainingConfig

    def build_network(self, settings: PretrainingConfig, cohort: Cohort) -> SignalEncoder:
        """A network whose encoder is that of lesions and tissue."""
        from tripq.tasks.signal.encoder import SignalEncoder
        from tripq.training.configured import build_encoder

        return build_encoder(SignalEncoder, settings.network, cohort.voxel_sizes)


def _directions(prediction: Prediction) -> NDArray[np.float64]:
    """q-vectors of the predicted scan."""
    return prediction.dwi.q if prediction.q_out is None else prediction.q_out
