"""Train lesion networks with real heads beside simulated scans.

    python examples/train_on_heads.py --heads FOLDER --accept-licences
    python examples/measure_weights.py --heads FOLDER --accept-licences --left-out runs/heads

FOLDER holds one folder for each source of `paper.real_heads.HEADS`.  The patients and their first
split are those of examples/reproduce_paper.py.  There are three stages:

1. *base*: simulated scans of the training patients, with many voxel sizes, gradient tables, poses,
   levels of noise and artefacts (`paper.mixture`);
2. for each scanner, the base is trained further on real, healthy heads of the other scanners, with
   and without implanted lesions, beside simulated scans.  examples/measure_weights.py measures
   these networks on the scanner that they have not seen;
3. the same with the heads of all scanners.

Networks read the contrast of b0, in which T2 shows, beside the signal over b0, and features are
normalised over the surroundings of each voxel: statistics of the training are wrong for a scanner
that it did not see.

The limits of each network are chosen on heads that networks have not seen: every other person's, as
they are and with outlines of the validation patients, in the maps of the network that was trained
without that person.  The threshold is the median, over the healthy heads, of the lowest one at
which `QUIET` ml or less are marked; the minimum volume of a candidate is that of the highest F1.

If the program was interrupted, the base goes on where it was, and finished networks are read.  The
base of the network that comes with tripq is in perf/results/lesions/base; it is read, too, if it is
copied to runs/heads/runs/base.  ``--recipe`` trains one of its rivals in the same way
(`paper.recipes`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from paper.cohort import Scans
from paper.command import AcceptLicences, Data, Device, Out
from paper.implanted import Implanted, pair_heads
from paper.mixture import FULL_MIXTURE, Mixture, shares
from paper.plan import FULL, Condition, Plan, Split, split_patients
from paper.real_heads import HEADS, Heads, RealHead
from paper.recipes import EQUIVARIANT, RECIPES, OfRecipe, Recipe, Stage
from paper.work import Maps
from rich.console import Console
from study.command import start
from torch import nn

from tripq.networks.blocks import graph_radius, reads_b0_contrast
from tripq.networks.checkpoint import load_network, read_notes, save_network
from tripq.scans import DWI, voxel_ml
from tripq.scans.resampling import map_back, resample
from tripq.tasks.lesions.datasets import (
    LabelledSubject,
    OpenMS,
    healthy_subject,
    open_ms,
)
from tripq.tasks.lesions.scores import best_min_volume
from tripq.tasks.lesions.segmentation import load_model, segment_scan
from tripq.tasks.lesions.task import LesionTask
from tripq.training import Augmentation, Budget, PatchDataModule, Progress, Stopping, train

#: Of the experiment; the voxels where a condition of the mixture says no size.
PLAN = replace(FULL, voxel_size=2.0, box_size=20)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console()

Part = Literal["training", "validation", "test"]

#: Subjects with implanted lesions, for each healthy person.
IMPLANTED: dict[Part, int] = {"training": 6, "validation": 1, "test": 4}

#: Largest volume in ml that may be marked in a healthy head at its threshold.
QUIET = 0.1

CAUTION = (
    "trained on modelled lesions, not on scans of patients; for research only, not for diagnosis"
)

#: File of a network in its folder.
NETWORK = "network.safetensors"

#: Where networks go unless another folder is named.
OUT = Path("runs/heads")


@dataclass(frozen=True)
class Cohorts:
    """The scans of all stages; those that are missing are simulated or implanted.

    Parameters
    ----------
    sources : OpenMS
        Outlines and template.
    split : Split
        Of the patients.
    folder : Path
        Of the cohorts and of the networks.
    data : Path
        Of the scans of the healthy heads.
    mixture : Mixture
        Of the simulated scans.
    voxel_size : float
        Where a condition says none.
    heads : tuple of RealHead
        Those that are used.
    """

    sources: OpenMS
    split: Split
    folder: Path
    data: Path
    mixture: Mixture = FULL_MIXTURE
    voxel_size: float = PLAN.voxel_size
    heads: tuple[RealHead, ...] = HEADS

    @classmethod
    def of_first_split(cls, sources: OpenMS, folder: Path, data: Path) -> Cohorts:
        """Those of the first split of the experiment."""
        splits = split_patients(sources.patients, PLAN.n_validation, PLAN.n_test, PLAN.seeds)
        return cls(sources, splits[0], folder, data)

    @property
    def implants(self) -> Path:
        """Folder of the subjects with implanted lesions."""
        return self.folder / "implanted"

    @property
    def people(self) -> tuple[str, ...]:
        """The healthy persons, each with a scanner of their own."""
        return tuple(dict.fromkeys(head.person for head in self.heads))

    def others(self, person: str) -> list[RealHead]:
        """The heads of all but one person."""
        return [head for head in self.heads if head.person != person]

    def under(self, condition: Condition, patients: Sequence[str]) -> list[LabelledSubject]:
        """Simulated scans of patients under one condition."""
        scans = Scans(self.folder / "cohorts")
        return scans.subjects(self.sources, condition, patients, self.voxel_size)

    def pairs(self) -> list[tuple[Condition, str]]:
        """Conditions and patients of the simulated training scans."""
        mixture, patients = self.mixture, self.split.training
        return [
            (condition, patient)
            for condition, some in shares(mixture.training, patients, mixture.n_patients)
            for patient in some
        ]

    def simulated(self, every: int = 1) -> list[LabelledSubject]:
        """Simulated scans of the training patients, or every n-th of them."""
        pairs = self.pairs()[::every]
        return [self.under(condition, [patient])[0] for condition, patient in pairs]

    def validation(self) -> list[LabelledSubject]:
        """Simulated scans of the validation patients."""
        patients = self.split.validation
        return [scan for c in self.mixture.validation for scan in self.under(c, patients)]

    def implanted(self, part: Part, heads: Sequence[RealHead]) -> list[LabelledSubject]:
        """Outlines of the patients of one part of the split in healthy heads.

        Which outlines a head gets does not depend on the other heads that are chosen.
        """
        pairs = pair_heads(self.heads, getattr(self.split, part), IMPLANTED[part])
        chosen = [pair for pair in pairs if pair[0] in heads]
        return Implanted(self.implants, self.data).subjects(self.sources, chosen)

    def healthy(self, heads: Sequence[RealHead]) -> list[LabelledSubject]:
        """The heads as they are."""
        return [_healthy(head, self.data) for head in heads]


@cache  # every network needs most of them, and reading takes minutes
def _healthy(head: RealHead, data: Path) -> LabelledSubject:
    return healthy_subject(head.head(data))


@cache  # every network needs most of them
def _resampled(scan: LabelledSubject, voxel_size: float) -> LabelledSubject:
    """On cubic voxels; a voxel is lesion if at least half of it is covered."""
    dwi = resample(scan.dwi, voxel_size)
    covered = map_back(scan.lesion.astype(np.float32), scan.dwi, dwi)
    return LabelledSubject(scan.name, dwi, covered >= 0.5)


@dataclass(frozen=True)
class Studio:
    """Trains the networks, each in a folder of its own; a finished one is read from its file.

    Parameters
    ----------
    cohorts : Cohorts
        The scans.
    recipe : Recipe
        The network, its steps and rates.
    plan : Plan
        Boxes.
    device : str
        Where to compute.
    """

    cohorts: Cohorts
    recipe: Recipe = EQUIVARIANT
    plan: Plan = PLAN
    device: str = "cpu"

    def folder(self, name: str) -> Path:
        """Of a network and its checkpoints; those of rivals have a folder of their own."""
        runs = self.cohorts.folder / "runs"
        ours = self.recipe.name == EQUIVARIANT.name
        return runs / name if ours else runs / self.recipe.name / name

    def network_without(self, person: str) -> Path:
        """File of `without`."""
        return self.folder(f"without-{person}") / NETWORK

    def base(self) -> nn.Module:
        """The network that has seen simulated scans only."""
        path = self.folder("base") / NETWORK
        if not path.is_file():
            torch.manual_seed(0)
            network = self.recipe.build()
            self._train(network, path.parent, self.cohorts.simulated(), self.recipe.base)
            self._save(network, (), path)
        return load_network(path)

    def without(self, person: str) -> nn.Module:
        """The network that has not seen a person and their scanner."""
        return self._with(self.cohorts.others(person), f"without-{person}")

    def with_all(self) -> nn.Module:
        """The network that has seen all heads."""
        return self._with(self.cohorts.heads, "all")

    def _with(self, heads: Sequence[RealHead], name: str) -> nn.Module:
        """The base, trained further with real heads beside every second simulated scan."""
        path = self.folder(name) / NETWORK
        if not path.is_file():
            network = self.base()
            scans = [
                *self.cohorts.simulated(every=2),
                *self.cohorts.implanted("training", heads),
                *self.cohorts.healthy(heads),
            ]
            self._train(network, path.parent, scans, self.recipe.with_heads, kept=(network,))
            self._save(network, heads, path)
        return load_network(path)

    def _train(
        self,
        network: nn.Module,
        folder: Path,
        scans: Sequence[LabelledSubject],
        stage: Stage,
        *,
        kept: Sequence[nn.Module] = (),
    ) -> None:
        console.print(f"training: {folder.name}, {len(scans)} scans", markup=False)
        stopping = None
        if stage.every:
            # Voxels of all samplings are in one score, which is highest long before each is best.
            stopping = Stopping(stage.every, patience=stage.steps, falling=True, returned="last")
        patches = PatchDataModule(
            [self._suited(scan) for scan in scans],
            LesionTask(),
            radius=graph_radius(network),
            box_size=self.plan.box_size,
            n_boxes=self.plan.n_boxes,
            augment=Augmentation(),
            validation=[self._suited(s) for s in self.cohorts.validation()] if stage.every else (),
            b0_contrast=reads_b0_contrast(network),
        )
        train(
            network,
            patches,
            Budget(steps=stage.steps),
            stopping=stopping,
            folder=folder if stage.every else None,
            learning_rate=stage.learning_rate,
            weight_decay=self.recipe.weight_decay,
            kept=kept,
            precision="auto",
            device=self.device,
            report=report,
        )

    def _suited(self, scan: LabelledSubject) -> LabelledSubject:
        """A scan on voxels of the network."""
        size = self.recipe.voxel_size
        return scan if size is None else _resampled(scan, size)

    def _save(self, network: nn.Module, heads: Sequence[RealHead], path: Path) -> None:
        save_network(network, path, self._notes(heads))

    def choose_limits(self) -> None:
        """Write into the files of all finished networks what they mark; see `Limits`."""
        people = self.cohorts.people
        unseen = {person: self._unseen(person) for person in people}
        for path, seen in [
            *((self.network_without(p), [q for q in people if q != p]) for p in people),
            (self.folder("all") / NETWORK, people),
        ]:
            pairs = [pair for person in seen for pair in unseen[person]]
            limits = Limits.choose(*zip(*pairs, strict=True))
            save_network(load_network(path), path, {**read_notes(path), **limits.notes})

    def _unseen(self, person: str) -> list[tuple[LabelledSubject, NDArray[np.float32]]]:
        """One head of a person, healthy and implanted, mapped by a network that has not seen it."""
        heads = [head for head in self.cohorts.heads if head.person == person]
        implanted = self.cohorts.implanted("validation", heads)
        subjects = [*implanted, *self.cohorts.healthy(heads[:1])]
        self.without(person)
        model = load_model(self.network_without(person))
        return [
            (subject, segment_scan(model, subject.dwi, device=self.device).probability)
            for subject in subjects
        ]

    def _notes(self, heads: Sequence[RealHead]) -> dict[str, str]:
        """What the file of a network says about its training."""
        samplings = [
            *(
                Sampling.of_condition(c, self.cohorts.voxel_size)
                for c in self.cohorts.mixture.training
            ),
            *(Sampling.of_scan(subject.dwi) for subject in self.cohorts.healthy(heads)),
        ]
        edges = [edge for sampling in samplings for edge in sampling.voxel_size]
        shells = [shell for sampling in samplings for shell in sampling.shells]
        real = "healthy real heads, lesions implanted into them, " if heads else ""
        size = self.recipe.voxel_size
        return {
            "caution": CAUTION,
            "voxel_size_mm": f"{min(edges):.3g} {max(edges):.3g}" if size is None else f"{size:g}",
            "b_values": " ".join(f"{b:g}" for b in sorted({b for b, _ in shells})),
            "fewest_directions": str(min(number for _, number in shells)),
            "data": f"{real}simulated diffusion signal; real outlines (Lesjak et al. 2017)",
        }


@dataclass(frozen=True)
class Limits:
    """What is marked.

    Parameters
    ----------
    threshold : float
        Minimum probability.
    min_volume : float
        Of a candidate, in ml.
    """

    threshold: float
    min_volume: float

    @property
    def notes(self) -> dict[str, str]:
        """For the file of a network."""
        return {"threshold": f"{self.threshold:.4f}", "min_volume_ml": f"{self.min_volume:g}"}

    @classmethod
    def choose(cls, subjects: Sequence[LabelledSubject], maps: Maps) -> Limits:
        """The median threshold of the healthy heads, then the highest F1 of lesions of all.

        See `quiet_threshold`.
        """
        pairs = list(zip(subjects, maps, strict=True))
        enough = [quiet_threshold(s, map) for s, map in pairs if not s.lesion.any()]
        threshold = float(np.median(enough))
        return cls(
            threshold,
            best_min_volume(
                [subject.dwi.volume(map >= threshold) for subject, map in pairs],
                [subject.dwi.volume(subject.lesion) for subject in subjects],
                [voxel_ml(subject.dwi.affine) for subject in subjects],
            ),
        )


def quiet_threshold(healthy: LabelledSubject, map: NDArray[np.float32]) -> float:
    """The lowest threshold, in steps of 0.0001, at which a head has `QUIET` ml or less."""
    largest_first = np.sort(map)[::-1].astype(float)
    number = int(QUIET / voxel_ml(healthy.dwi.affine))  # of voxels; the next one must be below
    return min(1.0, float(np.floor(1e4 * largest_first[number] + 1) / 1e4))


@dataclass(frozen=True)
class Sampling:
    """How a scan samples p and q.

    Parameters
    ----------
    voxel_size : tuple of float
        Edges of the voxels in mm; one if all are equal.
    shells : tuple of (float, int)
        b-value in s/mm2 and number of directions of each shell.
    """

    voxel_size: tuple[float, ...]
    shells: tuple[tuple[float, int], ...]

    @classmethod
    def of_condition(cls, condition: Condition, voxel_size: float) -> Sampling:
        """Of a simulated scan; the voxel size applies where the condition says none."""
        edges = condition.voxel_size or voxel_size
        b_values = condition.table.b_values
        return cls(
            edges if isinstance(edges, tuple) else (edges,),
            tuple((b, int((b_values == b).sum())) for b in condition.b_values),
        )

    @classmethod
    def of_scan(cls, dwi: DWI) -> Sampling:
        """Of a real scan.  Its b-values differ by a few s/mm2 and are rounded to 100."""
        return cls(
            tuple(dwi.voxel_size),
            tuple((round(shell.b_value, -2), len(shell)) for shell in dwi.shells),
        )


def report(progress: Progress) -> None:
    """Print the loss from time to time."""
    if progress.steps % 50 == 0:
        console.print(f"step {progress.steps}, loss {progress.loss:.4f}")


# -- commands ------------------------------------------------------------------------------------


@app.command()
def main(
    heads: Heads,
    out: Out = OUT,
    data: Data = None,
    accept_licences: AcceptLicences = False,
    device: Device = "cpu",
    recipe: OfRecipe = EQUIVARIANT.name,
    without: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PERSON",
            help="Train only the network that has not seen this person, for several processes at "
            "once; again for more.",
        ),
    ] = None,
) -> None:
    """Train the base, a network without each scanner, and one with the heads of all."""
    sources = open_ms(accept_licences=accept_licences, local=data)
    studio = Studio(Cohorts.of_first_split(sources, out, heads), RECIPES[recipe], device=device)
    if unknown := sorted(set(without or ()) - set(studio.cohorts.people)):
        raise typer.BadParameter(
            f"no person {', '.join(unknown)}; there are {', '.join(studio.cohorts.people)}."
        )
    for person in without or studio.cohorts.people:
        studio.without(person)
    if not without:
        studio.with_all()
        studio.choose_limits()
        console.print(f"written: {studio.folder('all') / NETWORK}", markup=False)


if __name__ == "__main__":
    start(app)
