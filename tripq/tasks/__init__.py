"""Tasks: the quantities that networks predict. Each is one folder, and none imports another.

The commands look up a task by its name among the entry points of the group `GROUP` that installed
packages declare, like networks (see `tripq.networks.registry`):

.. code-block:: toml

    [project.entry-points."tripq.tasks"]
    my-task = "my_package.commands:MyTaskCommands"

A weights file can name its task (the note ``task``).  Only this name is used to find the task, and
nothing in the file is executed.

>>> task_names()
('fibres', 'lesions', 'pretraining', 'signal', 'tissue')
>>> find_task("lesions").name
'lesions'
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import nn

    from tripq.networks.apply import Model, Prediction
    from tripq.scans import DWI, Frame
    from tripq.tasks.scoring import MapScoring
    from tripq.training import Progress, Scan, Task, TrainingRecord
    from tripq.training.config import TrainingConfig

#: Group of the entry points.
GROUP = "tripq.tasks"

DEFAULT_TASK = "lesions"
"""The task of the command where none is named, and of a file of weights that names none."""

SIGNAL_TASK = "signal"
"""The task of `tripq predict` where directions are named but no network."""

Config = TypeVar("Config", bound="TrainingConfig")
Bar = Callable[[str, str], AbstractContextManager[Callable[[int, int], None]]]


@dataclass(frozen=True, eq=False)
class Cohort:
    """The scans of a training.

    Parameters
    ----------
    name : str
        Of the dataset.
    simulated : bool
        Whether the dataset says that its signal is.
    training, validation : sequences of Scan
        Of different participants; a task's own kind of scan.
    held_out : tuple of str
        Labels of the participants for validation, without ``sub-``.
    voxel_sizes : (float, float)
        Shortest and longest edge of the voxels in mm.
    fingerprints : mapping
        SHA-256 of the files of both.
    """

    name: str
    simulated: bool
    training: Sequence[Any]
    validation: Sequence[Any]
    held_out: tuple[str, ...]
    voxel_sizes: tuple[float, float]
    fingerprints: Mapping[str, Any]

    @property
    def voxel_note(self) -> str:
        """The edges in mm as a checkpoint notes them: one, or the shortest and the longest."""
        return " ".join(f"{edge:g}" for edge in dict.fromkeys(self.voxel_sizes))

    @property
    def b_values(self) -> list[int]:
        """Of all shells, in s/mm2, to the nearest 10."""
        scans: tuple[Scan, ...] = (*self.training, *self.validation)
        return sorted({round(s.b_value / 10) * 10 for scan in scans for s in scan.dwi.shells})

    @property
    def fewest_directions(self) -> int:
        """Different ones of any shell that is trained on."""
        from tripq.scans.shells import count_directions

        return min(
            count_directions(scan.dwi.q[shell.indices])
            for scan in self.training
            for shell in scan.dwi.shells
        )


@dataclass(frozen=True, eq=False)
class Validation:
    """Results of a trained network on the validation scans.

    Parameters
    ----------
    notes : mapping of str to str
        What the file of weights needs besides, such as a threshold.
    scores : mapping
        For the record of the training, of JSON's types.
    summary : str
        The same in a line.
    write_page : callable
        Writes a page at a path, with settings to show.
    """

    notes: Mapping[str, str]
    scores: Mapping[str, Any]
    summary: str
    write_page: Callable[[Path, Mapping[str, str]], None]


class TaskCommands(ABC, Generic[Config]):
    """The interface of a task for the commands.

    Attributes
    ----------
    name : str
        Of the task.
    needed : tuple of str
        Packages of the extras ``ms`` and ``scores`` that training needs.
    weights : str
        Name of the file of a trained network.
    quantity : str
        What the output of a network is called in messages, in the plural.
    units : mapping of str to str
        Units of the maps, by the endings of their files, for pages.
    predicts_signal : bool
        Whether networks predict the signal along any direction; see `signal`.  `predict` then takes
        ``q_out``, the directions, or ``denoise=True``: every volume from the others.
    scored : str
        Ending of the map of numbers that `tripq evaluate` compares with known ones; empty for none.
    """

    name: ClassVar[str]
    needed: ClassVar[tuple[str, ...]]
    weights: ClassVar[str]
    quantity: ClassVar[str] = "values"
    units: ClassVar[Mapping[str, str]] = {}
    predicts_signal: ClassVar[bool] = False
    scored: ClassVar[str] = ""

    @property
    def included_file(self) -> Path | None:
        """File of the trained network that comes with the task; None if this installation has none.

        Its name is `weights`, in the folder ``weights`` beside the module of the class.
        """
        path = Path(inspect.getfile(type(self))).parent / "weights" / self.weights
        return path if path.is_file() else None

    def included_weights(self) -> Path:
        """`included_file`, for the commands that apply a network.

        Raises
        ------
        tripq.networks.checkpoint.CheckpointError
            If this installation has no such file.
        """
        if (path := self.included_file) is None:
            from tripq.networks.checkpoint import CheckpointError

            raise CheckpointError(
                f"{self.weights}: this installation of tripq has no trained network of the task "
                f"{self.name}. Give a checkpoint: --weights FILE."
            )
        return path

    @property
    @abstractmethod
    def config(self) -> type[Config]:
        """Settings of its training."""

    @property
    @abstractmethod
    def score(self) -> str:
        """Name of the validation score, for messages."""

    @abstractmethod
    def read_cohort(
        self,
        data: Path,
        truth: Path,
        settings: Config,
        frame: Frame,
        kept: Path,
        memory: float,
        bar: Bar,
    ) -> Cohort:
        """Find, split and read the scans of a training.

        Parameters
        ----------
        data, truth : Path
            A BIDS dataset, and derivatives with the truth of its scans.
        settings : Config
            Of the training.
        frame : {"fsl", "voxel", "world"}
            Of the gradient tables.
        kept : Path
            Folder for scans that do not fit into `memory`, in bytes.
        memory : float
            Bytes that the scans may take.
        bar : callable
            Shows a bar, given a title and a unit; its context is called with what is done and all.
        """

    @abstractmethod
    def build_network(self, settings: Config, cohort: Cohort) -> nn.Module:
        """A network with random weights for the scans of a training.

        Raises
        ------
        tripq.training.config.ConfigError
            If an argument is invalid.
        """

    @abstractmethod
    def build_task(self, settings: Config, cohort: Cohort) -> Task:
        """Target, loss and score of a training."""

    def new_network(self, settings: Config, cohort: Cohort) -> nn.Module:
        """A network whose random weights depend on the seed of the training.

        Raises
        ------
        tripq.training.config.ConfigError
            If the network cannot be built.
        tripq.scans.DWIError
            If the b-values of a scan exceed the range of the network.
        """
        import torch

        from tripq.networks.blocks import check_b_values

        torch.manual_seed(settings.training.seed)
        network = self.build_network(settings, cohort)
        for scan in (*cohort.training, *cohort.validation):
            check_b_values(network, scan.dwi)
        return network

    def train(
        self,
        network: nn.Module,
        settings: Config,
        cohort: Cohort,
        folder: Path,
        device: str = "cpu",
        report: Callable[[Progress], None] | None = None,
        kept: Collection[nn.Module] = (),
    ) -> TrainingRecord:
        """Train a network until the score of the validation no longer improves.

        Parameters
        ----------
        network : Module
            From `new_network`; on the CPU afterwards, with the weights of the best validation.
        settings : Config
            Of the training.
        cohort : Cohort
            Its scans; see `read_cohort`.
        folder, device, report, kept
            As in `tripq.training.configured.train_configured`.

        Raises
        ------
        tripq.training.config.ConfigError
            If training ended before the first validation.
        ValueError
            If the task rejects the scans; see `tripq.training.Task.check`.
        FloatingPointError
            If the loss is NaN or infinite.
        """
        from tripq.training.configured import train_configured

        return train_configured(
            network,
            self.build_task(settings, cohort),
            cohort.training,
            cohort.validation,
            settings.training,
            folder,
            device=device,
            report=report,
            kept=kept,
        )

    @abstractmethod
    def validate(
        self,
        network: nn.Module,
        scans: Sequence[Any],
        device: str,
        report: Callable[[int, int], None],
    ) -> Validation:
        """Apply a network, on a device, to the validation scans."""

    def predict(self, network: nn.Module, dwi: DWI, /, **how: Any) -> NDArray[np.float32]:
        """The prediction for a scan that suits the network; see `predict_blocks`."""
        from tripq.networks.blocks import predict_blocks

        return predict_blocks(network, dwi, **how)

    def signal(self, prediction: Prediction) -> DWI | None:
        """The predicted scan with notes, for a task that predicts the signal; None for others."""
        return None

    @abstractmethod
    def maps(self, model: Model, prediction: Prediction) -> Mapping[str, NDArray[Any]]:
        """Maps of a scan, (V,) or (V, C), by the endings of their files."""

    def sidecars(
        self, model: Model, prediction: Prediction
    ) -> Mapping[str, str | Mapping[str, Any]]:
        """Files beside the maps, by the endings of their names: text, or the content of JSON."""
        return {}

    def shown(
        self, prediction: Prediction, maps: Mapping[str, NDArray[Any]]
    ) -> Mapping[str, NDArray[Any]]:
        """Maps on the page of a scan, by their names; by default all of `maps`."""
        return maps

    def write_page(
        self,
        path: Path,
        model: Model,
        prediction: Prediction,
        maps: Mapping[str, NDArray[Any]],
        settings: Mapping[str, str],
    ) -> None:
        """Write the page of a scan: by default the maps `shown`, the network and the measurement.

        Parameters
        ----------
        path : Path
            ``.html``.
        model : Model
            The network.
        prediction : Prediction
            Its output.
        maps : mapping of str to arrays
            Those of the scan, from `maps`.
        settings : mapping of str to str
            Settings that determine the maps, shown as they are; see
            `tripq.report.maps.write_maps_report`.
        """
        from tripq.report.maps import ShownMap, write_maps_report

        shown = [
            ShownMap(name, values, self.units.get(name, ""))
            for name, values in self.shown(prediction, maps).items()
        ]
        write_maps_report(
            path, prediction.dwi, shown, settings, network=model.described, kind=f"{self.name} maps"
        )

    def scoring(
        self,
        threshold: float | None = None,
        min_volume: float | None = None,
        choose_limits: bool = False,
    ) -> MapScoring[Any]:
        """How maps are scored: by default as numbers, those of the map `scored`.

        Parameters
        ----------
        threshold : float, optional
            On probabilities, for tasks that have one.
        min_volume : float, optional
            Of what is marked, in ml, for tasks that mark something.
        choose_limits : bool, optional
            Whether both are chosen on the maps that are scored.

        Raises
        ------
        ValueError
            If the task has no scores, or no such limits.
        """
        from tripq.tasks.scoring import ValueScoring, reject_limits

        if not self.scored:
            raise ValueError(f"the task {self.name} has no map that can be scored.")
        reject_limits(f"the maps of the task {self.name}", threshold, min_volume, choose_limits)
        return ValueScoring(self.scored, self.units.get(self.scored, ""))


def task_names() -> tuple[str, ...]:
    """The names of all tasks, sorted."""
    return tuple(sorted({entry.name for entry in entry_points(group=GROUP)}))


def find_task(name: str) -> TaskCommands[Any]:
    """The task of a name.

    Raises
    ------
    LookupError
        If there is none.
    """
    for entry in entry_points(group=GROUP, name=name):
        kind: type[TaskCommands[Any]] = entry.load()
        return kind()
    raise LookupError(f"the task {name!r} is unknown; there are: {', '.join(task_names())}")
