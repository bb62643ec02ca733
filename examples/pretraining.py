"""The lesion network from an encoder trained on unlabelled scans, and from random weights.

    python examples/pretraining.py --heads FOLDER --accept-licences
    python examples/pretraining.py --heads FOLDER --accept-licences --seed 0 --cohort implanted
    python examples/pretraining.py --heads FOLDER --accept-licences --save

FOLDER holds one folder for each source of `paper.real_heads.HEADS`.  The encoder is trained by the
task `pretraining` on real heads, without labels.  The lesion network then starts from it or from
random weights, and is trained on 1, 2, 4 and all training patients of a split, in two cohorts:
simulated scans of 2.5 mm, and lesions implanted into real heads.  Every network is tested on other
patients, in simulated scans, in simulated heads that are turned with their tables, and implanted
into real heads.

Nothing is chosen on the test patients, and nobody is in two parts: `PEOPLE` divides the real heads
into those of pretraining and training, of validation, and of the tests.  Both starts are trained
with every learning rate of `RATES`; that with the highest mean average precision on the validation
patients is shown.  Weights and thresholds come from the validation patients, too.

Every run is a file of JSON in the folder of the results.  Finished runs are read, and an
interrupted one goes on from its last validation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
import torch
import typer
from paper.cohort import Scans
from paper.command import AcceptLicences, Data, Device, Out
from paper.implanted import Implanted, pair_heads
from paper.plan import FULL, ROTATED, SMALL, USUAL, Condition, Plan, Split, split_patients
from paper.real_heads import HEADS, Heads, RealHead
from paper.work import Maps, choose_threshold, score_maps
from rich.console import Console
from signal_study.heads import slabs
from study import kept as kept_results
from study.command import start
from study.pages import table

from tripq.networks import save_network
from tripq.networks.blocks import graph_radius
from tripq.networks.start import start_from
from tripq.tasks.lesions.datasets import LabelledSubject, OpenMS, open_ms
from tripq.tasks.lesions.segmentation import segment
from tripq.tasks.lesions.segmenter import LesionSegmenter
from tripq.tasks.lesions.task import LesionTask
from tripq.tasks.signal.encoder import SignalEncoder
from tripq.tasks.signal.task import SignalTask
from tripq.training import Budget, PatchDataModule, Progress, Stopping, train

Part = Literal["training", "validation", "test"]
Cohort = Literal["simulated", "implanted"]
Start = Literal["random", "encoder"]

PEOPLE: dict[Part, tuple[str, ...]] = {
    "training": ("ph1201", "ph601", "pd701", "uih"),
    "validation": ("tractseg",),
    "test": ("nlsam", "canon"),
}
"""Whose heads are used for what; the unlabelled scans are those of the training."""

IMPLANTED: dict[Part, int] = {"training": 4, "validation": 3, "test": 4}
"""Subjects with implanted lesions, for each person; fewer if there are fewer pairs."""

PATIENTS = (1, 2, 4, None)
"""Of the training; None for all."""

RATES = (5e-3, 1.5e-3)
RADIUS = 3.0
STEPS, EVERY = 1200, 200
BOX_SIZE, N_BOXES = 20, 2

PRETRAINING_STEPS, PRETRAINING_BOX, PRETRAINING_RATE = 3000, 12, 5e-3

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "perf" / "results" / "pretraining.json"
OUT = Path("runs/pretraining")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console()


@dataclass(frozen=True)
class Run:
    """One training of the lesion network.

    Parameters
    ----------
    cohort : {"simulated", "implanted"}
        What it is trained on.
    patients : int or None
        Number of training patients; None for all.
    start : {"random", "encoder"}
        Initial weights.
    rate : float
        Highest learning rate.
    seed : int
        Of the split, the weights and the boxes.
    """

    cohort: Cohort
    patients: int | None
    start: Start
    rate: float
    seed: int

    @property
    def key(self) -> str:
        """Name of its files."""
        return f"{self.cohort}-{self.patients or 'all'}-{self.start}-{self.rate:g}-{self.seed}"


@dataclass(frozen=True)
class Result:
    """A finished run.

    Parameters
    ----------
    run : Run
        The training.
    scores : tuple of (int, float)
        Average precision on the validation patients, by step.
    steps : int
        Of the optimiser.
    seconds : float
        Of the training.
    tests : mapping
        Scores of the test patients by cohort, all voxels pooled; see
        `tripq.tasks.lesions.scores.Scores`.
    """

    run: Run
    scores: tuple[tuple[int, float], ...]
    steps: int
    seconds: float
    tests: dict[str, dict[str, float]]

    @property
    def best(self) -> float:
        """The highest score on the validation patients."""
        return max(score for _, score in self.scores)

    @classmethod
    def of(cls, found: dict[str, Any]) -> Result:
        """The result in a JSON object."""
        scores = tuple((step, score) for step, score in found.pop("scores"))
        return cls(Run(**found.pop("run")), scores, **found)


@dataclass(frozen=True)
class Study:
    """Trains and tests; what is finished is read from its file.

    Parameters
    ----------
    sources : OpenMS
        Outlines and template.
    data : Path
        Of the scans of the healthy heads.
    folder : Path
        Of cohorts, networks and results.
    plan : Plan
        Patients, splits and voxels of the simulated scans.
    steps, every, pretraining_steps : int
        Of each training, between validations, and of each pretraining.
    box_size : int
        In voxels.
    heads : tuple of RealHead
        Of all people.
    people : mapping
        See `PEOPLE`.
    device : str
        Where to compute.
    """

    sources: OpenMS
    data: Path
    folder: Path
    plan: Plan = FULL
    steps: int = STEPS
    every: int = EVERY
    pretraining_steps: int = PRETRAINING_STEPS
    box_size: int = BOX_SIZE
    heads: tuple[RealHead, ...] = HEADS
    people: dict[Part, tuple[str, ...]] = field(default_factory=lambda: PEOPLE)
    device: str = "cpu"

    def split(self, seed: int) -> Split:
        """Of the patients."""
        plan = self.plan
        patients = plan.patients or self.sources.patients
        return split_patients(patients, plan.n_validation, plan.n_test, plan.seeds)[seed]

    def heads_of(self, part: Part) -> list[RealHead]:
        """The real heads of a part."""
        return [head for head in self.heads if head.person in self.people[part]]

    def simulated(self, condition: Condition, patients: Sequence[str]) -> list[LabelledSubject]:
        """Simulated scans."""
        scans = Scans(self.folder / "cohorts")
        return scans.subjects(self.sources, condition, patients, self.plan.voxel_size)

    def implanted(self, part: Part, patients: Sequence[str]) -> list[LabelledSubject]:
        """Lesions of patients in the real heads of a part."""
        # with few patients the same pairs come again
        pairs = list(dict.fromkeys(pair_heads(self.heads_of(part), patients, IMPLANTED[part])))
        return Implanted(self.folder / "implanted", self.data).subjects(self.sources, pairs)

    def scans(self, cohort: Cohort, part: Part, patients: Sequence[str]) -> list[LabelledSubject]:
        """Of a cohort, for training and validation."""
        if cohort == "simulated":
            return self.simulated(USUAL, patients)
        return self.implanted(part, patients)

    def tests(self, patients: Sequence[str]) -> dict[str, list[LabelledSubject]]:
        """The subjects of all tests, by cohort."""
        return {
            "simulated": self.simulated(USUAL, patients),
            "turned": self.simulated(ROTATED, patients),
            "implanted": self.implanted("test", patients),
        }

    def encoder(self, seed: int) -> Path:
        """File of the network of the task `pretraining`."""
        path = self.folder / "encoders" / f"{seed}.safetensors"
        if not path.is_file():
            heads = self.heads_of("training")
            crops = [slab for head in heads for slab in slabs(head.name, head.read(self.data))]
            console.print(f"pretraining: seed {seed}, {len(crops)} slabs", markup=False)
            torch.manual_seed(seed)
            network = SignalEncoder(p_radius=RADIUS, **SMALL)
            patches = PatchDataModule(
                crops,
                SignalTask(),
                radius=graph_radius(network),
                box_size=min(self.box_size, PRETRAINING_BOX),
                n_boxes=N_BOXES,
                seed=seed,
            )
            budget = Budget(steps=self.pretraining_steps)
            train(
                network,
                patches,
                budget,
                learning_rate=PRETRAINING_RATE,
                device=self.device,
                report=report,
            )
            save_network(network.cpu(), path, {"data": "healthy real heads", "task": "pretraining"})
        return path

    def result(self, run: Run) -> Result:
        """Train and test."""
        path = self.folder / "results" / f"{run.key}.json"
        if not path.is_file():
            console.print(run.key, markup=False)
            kept_results.write(path, self._result(run))
        return Result.of(kept_results.read(path))

    def _result(self, run: Run) -> Result:
        split = self.split(run.seed)
        torch.manual_seed(run.seed)
        network = LesionSegmenter(p_radius=RADIUS, **SMALL)
        kept: tuple[torch.nn.Module, ...] = ()
        if run.start == "encoder":
            encoder = self.encoder(run.seed)
            torch.manual_seed(run.seed)  # the head begins alike
            network = LesionSegmenter(p_radius=RADIUS, **SMALL)
            kept = start_from(network, encoder).modules
        validation = self.scans(run.cohort, "validation", split.validation)
        patches = PatchDataModule(
            self.scans(run.cohort, "training", split.training[: run.patients]),
            LesionTask(),
            radius=graph_radius(network),
            box_size=self.box_size,
            n_boxes=N_BOXES,
            seed=run.seed,
            validation=validation,
        )
        record = train(
            network,
            patches,
            Budget(steps=self.steps),
            # to the end, as a falling rate is best there
            stopping=Stopping(self.every, patience=self.steps, falling=True),
            folder=self.folder / "checkpoints" / run.key,
            learning_rate=run.rate,
            device=self.device,
            report=report,
            kept=kept,
        )
        network = network.to(self.device)
        maps = self._maps(network, validation)
        threshold = choose_threshold(validation, maps)
        tests = {
            name: score_maps(subjects, self._maps(network, subjects), threshold)
            for name, subjects in self.tests(split.test).items()
        }
        pooled = {name: asdict(tested.pooled) for name, tested in tests.items()}
        return Result(run, record.scores, record.steps, round(record.seconds, 1), pooled)

    def _maps(self, network: LesionSegmenter, subjects: Sequence[LabelledSubject]) -> Maps:
        return [segment(network, subject.dwi, device=self.device) for subject in subjects]


def runs(seeds: Sequence[int], cohorts: Sequence[Cohort]) -> Iterator[Run]:
    """All runs, the starts beside each other."""
    for seed in seeds:
        for cohort in cohorts:
            for patients in PATIENTS:
                for rate in RATES:
                    for one in get_args(Start):
                        yield Run(cohort, patients, one, rate, seed)


def chosen_rate(results: Sequence[Result]) -> list[Result]:
    """Those of the learning rate with the highest mean score on the validation patients."""
    by_rate: dict[float, list[Result]] = {}
    for result in results:
        by_rate.setdefault(result.run.rate, []).append(result)
    return max(by_rate.values(), key=lambda some: float(np.mean([one.best for one in some])))


def comparison(results: Sequence[Result]) -> str:
    """Average precision of both starts on the test patients: mean and range over the seeds.

    The gain is that of the encoder over random weights in the same split.
    """
    lines = []
    for cohort in get_args(Cohort):
        for patients in PATIENTS:
            some = [r for r in results if (r.run.cohort, r.run.patients) == (cohort, patients)]
            starts = {
                one: chosen_rate(found)
                for one in get_args(Start)
                if (found := [result for result in some if result.run.start == one])
            }
            if len(starts) < len(get_args(Start)):
                continue
            for test in starts["random"][0].tests:
                values = {
                    one: {r.run.seed: r.tests[test]["average_precision"] for r in found}
                    for one, found in starts.items()
                }
                both = sorted(values["random"].keys() & values["encoder"].keys())
                gains = [values["encoder"][seed] - values["random"][seed] for seed in both]
                cells = [
                    _spread([values[one][seed] for seed in both]) + f" ({found[0].run.rate:g})"
                    for one, found in starts.items()
                ]
                lines.append(
                    f"{cohort} | {patients or 'all'} | {test} | {' | '.join(cells)} | "
                    f"{_spread(gains, '+.3f')}"
                )
    return table(
        "trained on | patients | tested on | random weights (learning rate) | encoder (learning "
        "rate) | gain",
        lines,
    )


def _spread(values: Sequence[float], form: str = ".3f") -> str:
    """Mean, and lowest and highest."""
    if not values:
        return "-"
    return f"{np.mean(values):{form}} [{min(values):{form}}, {max(values):{form}}]"


def report(progress: Progress) -> None:
    """Print the loss from time to time."""
    if progress.steps % 100 == 0:
        console.print(f"step {progress.steps}, loss {progress.loss:.4f}")


@app.command()
def main(
    heads: Heads,
    out: Out = OUT,
    data: Data = None,
    accept_licences: AcceptLicences = False,
    device: Device = "cpu",
    seed: Annotated[
        list[int] | None,
        typer.Option(min=0, max=FULL.seeds - 1, help="Some seeds; again for more."),
    ] = None,
    cohort: Annotated[
        list[Cohort] | None, typer.Option(help="Some cohorts; again for more.")
    ] = None,
    save: Annotated[bool, typer.Option("--save", help="Keep the results of all runs.")] = False,
) -> None:
    """Train, test and compare."""
    if save and (seed or cohort):
        raise typer.BadParameter("--save needs all runs: omit --seed and --cohort.")
    sources = open_ms(accept_licences=accept_licences, local=data)
    study = Study(sources, heads, out, device=device)
    chosen = list(runs(seed or range(FULL.seeds), cohort or get_args(Cohort)))
    results = [study.result(run) for run in chosen]
    console.print(comparison(results), markup=False)
    if save:
        kept_results.write_rows(RESULTS, results)


if __name__ == "__main__":
    start(app)
