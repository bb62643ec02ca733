"""The networks that are compared, how each is tuned, trained and tested."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from paper.rivals import MapConvSegmenter
from study import kept
from study.weights import notes
from torch import nn

from tissue_study.heads import (
    CLASSES,
    TESTS,
    TISSUE_CLASSES,
    TRAINING,
    at_usual_table,
    read_heads,
    usual_q,
    without_lesions,
)
from tissue_study.results import Pilot, Results, Row, Trained
from tripq.networks import VoxelNetwork, load_network, save_network
from tripq.networks.apply import load_model
from tripq.networks.blocks import graph_radius, predict_blocks
from tripq.networks.conv import ConvSegmenter
from tripq.scans import voxel_ml
from tripq.tasks.tissue.classes import Classes
from tripq.tasks.tissue.config import TissueOptimisationConfig
from tripq.tasks.tissue.scans import LabelledScan
from tripq.tasks.tissue.scoring import LabelledMap, score_classes
from tripq.tasks.tissue.task import TissueTask
from tripq.training import (
    Budget,
    PatchDataModule,
    Progress,
    Stopping,
    TrainingRecord,
    score_scans,
    train,
)

SETTINGS = TissueOptimisationConfig()

N_CLASSES = len(CLASSES.names)

VALIDATIONS = 5
"""Of a training."""

NETWORK = "network.safetensors"
"""File of a network in its folder."""

CAUTION = "trained on simulated heads only; for research only, not for diagnosis"


@dataclass(frozen=True)
class Contender:
    """A network, and how it is trained.

    Parameters
    ----------
    name : str
        Of its files.
    says : str
        What the page calls it.
    poses : {"usual", "any"}
        Of the heads of its training; see `tissue_study.heads.TRAINING`.
    build : callable
        Makes the network, with fresh weights.
    pilot_steps : int
        Of each pilot.
    rates : tuple of float
        Learning rates of the pilots.
    weight_decay : float
        Of AdamW.
    one_table : bool
        Whether the network takes the usual table only.  Scans with another one are resampled for
        training, and in tests.
    classes : Classes
        `CLASSES`, or `TISSUE_CLASSES`: lesions have no label, and are not scored.
    tuned_as : Contender, optional
        Its pilots are used instead of own ones.
    """

    name: str
    says: str
    poses: str
    build: Callable[[], nn.Module]
    pilot_steps: int
    rates: tuple[float, ...]
    weight_decay: float = SETTINGS.weight_decay
    one_table: bool = False
    classes: Classes = CLASSES
    tuned_as: Contender | None = None

    def sees(self, scan: LabelledScan) -> LabelledScan:
        """A scan as the network takes it."""
        if self.one_table:
            scan = at_usual_table(scan)
        return without_lesions(scan) if self.classes == TISSUE_CLASSES else scan


_network = partial(
    VoxelNetwork,
    q_features="16x0e + 4x2e + 2x4e",
    p_features="16x0e + 4x1o + 4x2e",
    n_p_layers=2,
)

_equivariant = partial(
    Contender,
    build=partial(_network, f"{N_CLASSES}x0e"),
    pilot_steps=40,
    rates=(5e-3, 1e-2, 2e-2),
)

_convolution = partial(Contender, pilot_steps=80, rates=(1e-3, 3e-3, 1e-2), weight_decay=1e-1)

_reference = partial(
    _convolution,
    build=partial(ConvSegmenter, len(usual_q()), n_classes=N_CLASSES),
    one_table=True,
)

_EQUIVARIANT = _equivariant("equivariant-any", "equivariant", "any")

SHIPPED = replace(
    _EQUIVARIANT,
    name="tissue-any",
    says="equivariant, three classes",
    build=partial(_network, f"{len(TISSUE_CLASSES.names)}x0e"),
    classes=TISSUE_CLASSES,
    tuned_as=_EQUIVARIANT,
)
"""The network that comes with tripq."""

CONTENDERS = (
    _EQUIVARIANT,
    SHIPPED,
    _reference("reference-usual", "CNN on directions", "usual"),
    _convolution(
        "invariants-any",
        "CNN on invariants",
        "any",
        partial(MapConvSegmenter, "invariants", n_classes=N_CLASSES, turned=True),
    ),
    _reference("reference-any", "CNN on directions", "any"),
    _equivariant("equivariant-usual", "equivariant", "usual"),
    _convolution(
        "tensor-any",
        "CNN on FA, MD, AD, RD",
        "any",
        partial(MapConvSegmenter, "tensor", n_classes=N_CLASSES, turned=True),
    ),
)


@dataclass(frozen=True)
class Study:
    """Tunes, trains and tests; what is finished is read from its file.

    Parameters
    ----------
    folder : Path
        Of heads, networks and results.
    box_size : int
        Edge of the boxes of the training, in voxels.
    seconds : float
        Of a processor core that the steps of every training take, about: as many steps as the
        pilots made in this time.
    report : callable
        Called with lines about the progress.
    """

    folder: Path
    box_size: int
    seconds: float
    report: Callable[[str], None]

    def results(self, contender: Contender) -> Results:
        """Scores of a network on unseen heads."""
        folder = self.folder / contender.name
        path, file = folder / "results.json", folder / NETWORK
        if not path.is_file():
            trained = Trained.read(folder) if file.is_file() else self._trained(contender, folder)
            network = load_network(file).eval()
            Results(trained, tuple(self._tested(contender, network))).write(path)
        return Results.read(path)

    def pilots(self, contender: Contender) -> tuple[Pilot, ...]:
        """Short trainings of a network, one for each learning rate; or those of `tuned_as`."""
        if contender.tuned_as is not None:
            return self.pilots(contender.tuned_as)
        path = self.folder / contender.name / "pilots.json"
        return kept.read_or_make(path, Pilot, lambda: self._piloted(contender))

    def _piloted(self, contender: Contender) -> Iterator[Pilot]:
        training, validation = self._heads(contender)
        for rate in contender.rates:
            budget = Budget(steps=contender.pilot_steps)
            network, task, _, seconds = self._fit(contender, training, rate, budget)
            pilot = Pilot(rate, round(seconds, 3), score_scans(network, task, validation))
            self.report(f"{contender.name}: {pilot}")
            yield pilot

    def _trained(self, contender: Contender, folder: Path) -> Trained:
        """Train a network with the best learning rate of the pilots, and write it."""
        pilots = self.pilots(contender)
        training, validation = self._heads(contender)
        best = max(pilots, key=lambda pilot: pilot.score).rate
        pace = contender.pilot_steps * len(pilots) / sum(pilot.seconds for pilot in pilots)
        every = max(1, round(self.seconds * pace / VALIDATIONS))
        stopping = Stopping(every=every, patience=2, falling=True)
        budget = Budget(steps=every * VALIDATIONS)
        network, _, record, seconds = self._fit(
            contender, training, best, budget, stopping, validation
        )
        trained = Trained(
            name=contender.name,
            says=contender.says,
            poses=contender.poses,
            weights=sum(values.numel() for values in network.parameters()),
            pilots=() if contender.tuned_as else pilots,
            rate=best,
            steps=record.steps,
            seconds=round(seconds, 1),
            validation=record.scores,
        )
        self.report(f"{contender.name}: {trained}")
        save_network(network, folder / NETWORK, notes_on(training))
        trained.write(folder)
        return trained

    def _heads(self, contender: Contender) -> tuple[list[LabelledScan], list[LabelledScan]]:
        """Training and validation heads, as the network takes them."""
        training, validation = (
            list(map(contender.sees, read_heads(condition, self.folder / "heads")))
            for condition in TRAINING[contender.poses]
        )
        return training, validation

    def _fit(
        self,
        contender: Contender,
        training: Sequence[LabelledScan],
        rate: float,
        budget: Budget,
        stopping: Stopping | None = None,
        validation: Sequence[LabelledScan] = (),
    ) -> tuple[nn.Module, TissueTask, TrainingRecord, float]:
        """A trained network, its task, the record, and the processor's seconds that it took."""
        torch.manual_seed(0)
        network = contender.build()
        task = TissueTask.of(training, len(contender.classes.names), SETTINGS.balance)
        patches = PatchDataModule(
            training,
            task,
            radius=graph_radius(network),
            box_size=self.box_size,
            focus_share=SETTINGS.rare_share,
            validation=validation,
        )

        def show(progress: Progress) -> None:
            if progress.steps % 50 == 0:
                self.report(f"{contender.name}: step {progress.steps}, loss {progress.loss:.3f}")

        started = time.process_time()
        record = train(
            network,
            patches,
            budget,
            stopping=stopping,
            learning_rate=rate,
            weight_decay=contender.weight_decay,
            report=show,
        )
        return network, task, record, time.process_time() - started

    def _tested(self, contender: Contender, network: nn.Module) -> Iterator[Row]:
        """Scores of every unseen head in every condition, on the shells of the training."""
        b_values = load_model(self.folder / contender.name / NETWORK).b_values
        for test in TESTS:
            for scan in read_heads(test, self.folder / "heads"):
                shown = contender.sees(scan)
                found = [shell.b_value for shell in shown.dwi.shells]
                dwi = shown.dwi.with_shells(
                    [b for b in b_values if np.isclose(b, found, rtol=0.05).any()]
                )
                labels = predict_blocks(network, dwi).argmax(axis=1).astype(np.int8)
                size = voxel_ml(scan.dwi.affine)
                scores = score_classes(
                    LabelledMap(scan.name, labels, shown.labels, size, shown.classes)
                )
                dice = {
                    label: one.dice for label, one in zip(shown.classes.labels, scores, strict=True)
                }
                yield Row(test.name, scan.name, shown.dwi is not scan.dwi, dice)
                self.report(f"{contender.name}: {test.name}, {scan.name}, {dice}")


def notes_on(scans: Sequence[LabelledScan]) -> dict[str, str]:
    """What the file of a network says about its training."""
    dwis = [scan.dwi for scan in scans]
    fewest = min(len(shell) for dwi in dwis for shell in dwi.shells)
    about = notes(TissueTask.name, dwis, fewest=fewest, caution=CAUTION, data="simulated heads")
    return {**scans[0].classes.notes, **about}
