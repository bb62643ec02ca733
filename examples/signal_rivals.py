"""Directions that were not shown, and denoising, on real heads of other scanners, with rivals.

    python examples/signal_rivals.py --heads FOLDER
    python examples/signal_rivals.py --heads FOLDER --save --ship
    python examples/signal_rivals.py --save

FOLDER holds one folder for each source of `paper.real_heads.HEADS`.  For each fold of `FOLDS` a
network is trained on some people and applied to the others, whom and whose scanners it has not
seen.  Every rival is tuned on the heads of the training, too:

* spherical harmonics with Laplace-Beltrami regularisation: order and weight, for each number of
  directions;
* the diffusion tensor of dipy, which has nothing to tune;
* a Gaussian process with the covariances of Andersson and Sotiropoulos (NeuroImage 122:166, 2015)
  as in nifreeze: angle and size by marginal likelihood, covariance and noise by the error.  It is
  written here again, because nifreeze depends on nipype and nireports, and on an older numpy;
* for denoising, MP-PCA and Patch2Self of dipy.  The truth is unknown on the heads of the training;
  a denoiser is chosen by how well harmonics fitted to its result predict directions that it was
  not given, whose noise is independent of it.

Denoising is scored against the mean of repetitions, registered to the scan.  Networks and results
are kept in the folder of the results: finished ones are read, and an interrupted training starts
again.  ``--save`` writes all results into perf/results/signal/rivals.json and the tables of
docs/signal.md; without ``--heads`` the tables are written from this file.  ``--ship`` trains with
all heads, and writes the network that comes with tripq and its card.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from paper.real_heads import RealHead, choose_heads, list_licences
from rich.console import Console
from signal_study.heads import Crop, Denoise, Repeated, middle, noise_floor, slabs, trials
from signal_study.results import (
    TABLES,
    Denoised,
    Results,
    Row,
    read_all,
    summary,
    write_all,
    write_page,
)
from signal_study.rivals import (
    MPPCA,
    PATCH_RADII,
    Patch2Self,
    Predict,
    Rivals,
    tensor,
    tune_denoiser,
)
from study.command import Out, Save, ToShip, start
from study.weights import notes, write_card

from tripq.networks import load_network, save_network
from tripq.networks.blocks import graph_radius, predict_blocks
from tripq.tasks.signal.command import SignalCommands
from tripq.tasks.signal.denoise import Denoiser
from tripq.tasks.signal.network import SignalPredictor
from tripq.tasks.signal.scoring import Differences
from tripq.tasks.signal.task import FEWEST, SignalTask
from tripq.training import Budget, PatchDataModule, Progress, train

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "signal.md"
CARD = ROOT / "docs" / "signal-weights.md"
RESULTS = ROOT / "perf" / "results" / "signal" / "rivals.json"
TEMPLATE = Path(__file__).parent / "signal_study" / "card.md"
WEIGHTS = ROOT / "tripq" / "tasks" / "signal" / "weights" / SignalCommands.weights

OUT = Path("runs/signal")

NETWORK = "network.safetensors"

DENOISED_VOXELS = 5000
"""Of each head on which denoisers are tuned: MP-PCA of large patches is slow."""

VOXELS = 20_000
"""Of the middle of a head that is tested."""

STEPS, BOX_SIZE, LEARNING_RATE = 3000, 12, 4e-3

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console()

USED = (
    *("nlsam", "tractseg", "ph1201", "ph601", "pd701"),
    *("canon3000", "canon8000", "canon14000"),
    *("uihPA6", "uihAP9"),
)
"""Names of the heads; the first of each person is tested."""

REPEATS = ("uihPA6", "uihPA12", "uihPA12b")
"""A scan that is denoised, and its repetitions."""


@dataclass(frozen=True)
class Fold:
    """People, each with a scanner of their own, who are not in the training.

    Parameters
    ----------
    name : str
        Of its files.
    people : tuple of str
        Who is tested.
    chosen : bool
        Its results were seen when the settings of the network and of its training were chosen.
    """

    name: str
    people: tuple[str, ...]
    chosen: bool = False

    def training(self) -> list[RealHead]:
        """The heads of the others."""
        return [head for head in choose_heads(USED) if head.person not in self.people]

    def tests(self) -> list[RealHead]:
        """A head of each person who is tested."""
        of = {head.person: head for head in reversed(choose_heads(USED))}
        return [of[person] for person in self.people]


FOLDS = (
    Fold("validation", ("ph1201", "pd701"), chosen=True),
    Fold("first", ("tractseg", "uih"), chosen=True),
    Fold("second", ("nlsam", "ph601", "canon")),
)


@dataclass(frozen=True)
class Study:
    """Trains and compares; what is finished is read from its file.

    Parameters
    ----------
    data : Path
        Folder with the scans of the healthy heads.
    folder : Path
        Of networks and results.
    voxels : int
        Of the middle slices of a head that is tested.
    steps : int
        Of each training.
    """

    data: Path
    folder: Path
    voxels: int
    steps: int

    def middles(self, heads: Sequence[RealHead], voxels: int) -> list[Crop]:
        """The middle of heads."""
        return [middle(head.name, head.read(self.data), voxels) for head in heads]

    def training(self, heads: Sequence[RealHead]) -> list[Crop]:
        """Whole heads in slabs."""
        return [slab for head in heads for slab in slabs(head.name, head.read(self.data))]

    def network(self, name: str, crops: Sequence[Crop]) -> SignalPredictor:
        """A network that is trained on some heads."""
        path = self.folder / name / NETWORK
        if not path.is_file():
            console.print(f"training: {name}, {len(crops)} slabs", markup=False)
            about = notes(
                SignalTask.name,
                [crop.dwi for crop in crops],
                fewest=FEWEST,
                caution="predicted signal is no measurement; for research only, not for diagnosis",
                data="healthy real heads",
                step=10,
            )
            save_network(self._trained(crops), path, about)
        found = load_network(path)
        assert isinstance(found, SignalPredictor)
        return found.eval()

    def _trained(self, crops: Sequence[Crop]) -> SignalPredictor:
        torch.manual_seed(0)
        network = SignalPredictor()
        patches = PatchDataModule(
            crops, SignalTask(), radius=graph_radius(network), box_size=BOX_SIZE
        )
        budget = Budget(steps=self.steps)
        train(network, patches, budget, learning_rate=LEARNING_RATE, report=report)
        return network

    def results(self, fold: Fold) -> Results:
        """Scores of a network and of its rivals on heads that they have not seen."""
        path = self.folder / fold.name / "results.json"
        if not path.is_file():
            training = self.training(fold.training())
            network = self.network(fold.name, training)
            console.print(f"rivals: {fold.name}", markup=False)
            rivals = Rivals.tuned(training)
            tests = self.middles(fold.tests(), self.voxels)
            rows = [row for one in tests for row in compare(network, rivals, one)]
            denoised: tuple[Denoised, ...] = ()
            if choose_heads(REPEATS)[0].person in fold.people:
                denoised = self.denoised(network, rivals, fold.training())
            Results(fold.name, fold.chosen, tuple(rows), denoised).write(path)
        return Results.read(path)

    def denoised(
        self, network: SignalPredictor, rivals: Rivals, heads: Sequence[RealHead]
    ) -> tuple[Denoised, ...]:
        """Errors of denoised scans against the mean of repetitions; denoisers tuned on heads."""
        training = self.middles(heads, DENOISED_VOXELS)
        first, *others = (head.read(self.data) for head in choose_heads(REPEATS))
        repeated = Repeated.of(first, others)
        tuned = rivals.harmonics[max(rivals.harmonics)]
        fit = SignalPredictor(order=tuned.order, smoothing=tuned.smoothing)
        patches = [MPPCA(radius) for radius in PATCH_RADII]
        pca = tune_denoiser(patches, training, rivals.harmonics)
        regressions = [Patch2Self("ols"), Patch2Self("ridge")]
        regression = tune_denoiser(regressions, training, rivals.harmonics)
        methods: dict[str, Denoise] = {
            "nothing": lambda dwi: dwi.signal,
            "network": by_network(network),
            "harmonics": by_network(fit),
            f"MP-PCA, radius {pca.patch_radius}": pca,
            f"Patch2Self, {regression.model}": regression,
        }
        return tuple(Denoised(name, **repeated.error(how)) for name, how in methods.items())


def by_network(network: SignalPredictor) -> Denoise:
    """Every volume from the others, by a network of the task."""
    return lambda dwi: predict_blocks(Denoiser(network).eval(), dwi)


def compare(network: SignalPredictor, rivals: Rivals, one: Crop) -> list[Row]:
    """Scores by the number of directions shown; tensors of the prediction of all directions."""
    dwi, noise = one.dwi, noise_floor(one.dwi)
    (head,) = choose_heads([one.name])
    rows = []
    for trial in trials(dwi):
        methods: dict[str, Predict] = {
            "network": lambda dwi, q: predict_blocks(network, dwi, q_out=q),
            "harmonics": rivals.harmonics[trial.number],
            "process": rivals.processes[trial.number],
            "tensor": tensor,
        }
        both, scores = (trial.hidden, trial.hidden), {}
        for name, predict in methods.items():
            everything = dwi.signal.copy()
            everything[:, 1:] = predict(trial.shown, dwi.q[1:])
            predicted = replace(dwi, signal=everything)
            scores[name] = dict(Differences.of(predicted, dwi, both).scores)
        voxels, hidden = len(dwi.b0), len(trial.hidden)
        rows.append(Row(one.name, head.scanner, trial.number, hidden, voxels, noise, scores))
        console.print(rows[-1], markup=False)
    return rows


def ship(study: Study, results: Sequence[Results], weights: Path, card: Path) -> None:
    """Train with all heads, and write the network that comes with tripq and its card."""
    heads = choose_heads(USED)
    crops = study.training(heads)
    network = study.network("all", crops)
    shutil.copyfile(study.folder / "all" / NETWORK, weights)
    directions = [len(shell) for crop in crops for shell in crop.dwi.shells]
    write_card(
        card,
        TEMPLATE,
        weights,
        ["denoising", "angular-super-resolution"],
        summary=summary(results),
        weights=sum(values.numel() for values in network.parameters()),
        scans=len(heads),
        people=len({head.person for head in heads}),
        fewest=min(directions),
        most=max(directions),
        steps=study.steps,
        box=BOX_SIZE,
        licences=list_licences(heads),
    )


def report(progress: Progress) -> None:
    """Print the loss from time to time."""
    if progress.steps % 200 == 0:
        console.print(f"step {progress.steps}, loss {progress.loss:.4f}")


@app.command()
def main(
    heads: Annotated[
        Path | None,
        typer.Option(
            help="Folder with the scans of the healthy heads.", show_default="only kept results"
        ),
    ] = None,
    out: Out = OUT,
    fold: Annotated[list[str] | None, typer.Option(help="Some folds; again for more.")] = None,
    voxels: Annotated[int, typer.Option(help="Of the middle of a head that is tested.")] = VOXELS,
    steps: Annotated[int, typer.Option(help="Of each training.")] = STEPS,
    save: Save = False,
    to_ship: ToShip = False,
) -> None:
    """Train, compare, and keep the results; without heads, show the kept results."""
    if fold and (save or to_ship):
        raise typer.BadParameter("--save and --ship need all folds: omit --fold.")
    if heads is None:
        if fold or to_ship:
            raise typer.BadParameter("training needs the scans: give --heads FOLDER.")
        results = read_all(RESULTS)
    else:
        study = Study(heads, out, voxels, steps)
        results = [study.results(one) for one in FOLDS if not fold or one.name in fold]
        if save:
            write_all(results, RESULTS)
        if to_ship:
            ship(study, results, WEIGHTS, CARD)
    console.print(*(make(results) for make in TABLES.values()), sep="\n\n", markup=False)
    if save:
        write_page(results, PAGE)


if __name__ == "__main__":
    start(app)
