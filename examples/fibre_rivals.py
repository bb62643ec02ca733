"""Fibre orientations from 32 and from 12 directions, on simulated heads, with rivals.

    python examples/fibre_rivals.py
    python examples/fibre_rivals.py --real FOLDER --save --ship

A network, and the same one without neighbours, are trained for as many steps on simulated heads,
and applied to others with an SNR of 20.  The truth is that of the simulator.  The rivals are the
constrained spherical deconvolution of dipy, of the signal as it is and after MP-PCA.  Its response
function is that of the 300 voxels with the highest FA of the same scan; order, weight and threshold
of its regularisation are chosen for each b-value and number of directions, on the heads of the
validation; the first of them chooses the weights of the networks, too.

``--real FOLDER`` compares the methods on the example scan of TractSeg, too: FOLDER has its
``Diffusion.nii.gz``, ``Diffusion.bvals``, ``Diffusion.bvecs``, ``nodif_brain_mask.nii.gz`` and
``peaks.nii.gz``.  Networks, checkpoints and results are kept in the folder of the results: what is
finished is read, and an interrupted training resumes.  ``--save`` keeps the results and writes the
tables and the picture of docs/fibres.md.  ``--ship`` writes the network that comes with tripq, and
its card.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from fibre_study import heads
from fibre_study.picture import draw_peaks
from fibre_study.results import (
    DECONVOLUTIONS,
    DENOISED,
    MAIN_B_VALUE,
    NETWORK,
    RIDGE,
    RIDGE_DENOISED,
    TABLES,
    VOXELWISE,
    RealRow,
    Results,
    Row,
    Setting,
    Training,
    scores_table,
    write_page,
)
from fibre_study.rivals import (
    PATCH_RADII,
    Deconvolution,
    Denoised,
    RidgeDeconvolution,
    all_ridges,
    all_settings,
    denoised,
)
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from study import kept
from study.command import Out, Save, ToShip, start
from study.weights import notes, write_card

from tripq.networks import load_network, save_network
from tripq.networks.blocks import graph_radius, predict_blocks
from tripq.scans import DWI, read_dwi
from tripq.scans.response import scale_by_response
from tripq.scans.tensor import tensor_maps
from tripq.tasks.fibres.command import FibreCommands
from tripq.tasks.fibres.network import FibreNetwork
from tripq.tasks.fibres.peaks import angles_between, find_peaks
from tripq.tasks.fibres.scoring import FibreMap, kinds_of_voxels, read_peaks, score_fibres
from tripq.tasks.fibres.simulate import SimulatedFibres
from tripq.tasks.fibres.task import FibreTask
from tripq.training import Augmentation, Budget, PatchDataModule, Progress, Stopping, train

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "fibres.md"
PICTURE = ROOT / "docs" / "images" / "fibres.png"
CARD = ROOT / "docs" / "fibres-weights.md"
RESULTS = ROOT / "perf" / "results" / "fibres" / "rivals.json"
TEMPLATE = Path(__file__).parent / "fibre_study" / "card.md"
WEIGHTS = ROOT / "tripq" / "tasks" / "fibres" / "weights" / FibreCommands.weights

OUT = Path("runs/fibres")

HEADS, TESTS, STEPS = 30, 3, 2400

VALIDATION_HEADS = 3
"""Settings that are best on one head do not carry over to others from 12 directions."""

BOX_SIZE, N_BOXES, LEARNING_RATE = 10, 3, 8e-3

AUGMENTATION = Augmentation(noise=0.0, bias=0.0, b0_error=0.0, dropped=0.5)
"""The heads differ in all but the choice of directions."""

RADIUS = 4.0
"""Of a neighbourhood, in mm."""

FOCUS_SHARE = 0.75
"""Of the boxes, with a centre in white matter."""

FIRST_BOXES = 16
"""The networks start at a deconvolution of so many boxes: one batch has too few b-values."""

VALIDATIONS = 4

B_VALUES = (1000.0, 3000.0)
"""Of the tests, in s/mm2."""

SCORED = 2000
"""Voxels of white matter that are compared of a head, simulated or real; drawn at random."""

TUNED = 300
"""Voxels with crossings, of each head of the validation, on which a deconvolution is tuned."""

LEAST_FA = 0.2
"""Of the voxels of the real scan that are compared."""

TAGS = ("fibre-orientation-distribution", "fodf", "angular-super-resolution")

VALIDATION_SEED, TEST_SEED = 1, 2
"""Of heads other than those of the training."""

Predict = Callable[[DWI, NDArray[np.intp]], NDArray[np.float32]]
"""Distributions (n, C) in some voxels of a scan."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console()


@dataclass(frozen=True)
class Study:
    """Trains and compares; what is finished is read from its file.

    Parameters
    ----------
    folder : Path
        Of networks, checkpoints and results.
    real : Path or None
        Folder of the real scan.
    heads, tests : int
        Simulated heads of the training and of the tests.
    steps : int
        Of each training.
    """

    folder: Path
    real: Path | None
    heads: int
    tests: int
    steps: int

    @cached_property
    def training(self) -> list[SimulatedFibres]:
        """The heads of the training."""
        console.print(f"simulating {self.heads} heads")
        return [head.scaled() for head in heads.training_heads(self.heads, seed=0)]

    def validation(self, b_value: float) -> list[SimulatedFibres]:
        """The heads that choose weights of networks and settings of deconvolutions."""
        return list(heads.other_heads(VALIDATION_HEADS, VALIDATION_SEED, b_value))

    def network(self, name: str) -> FibreNetwork:
        """The network of a name, `NETWORK` or `VOXELWISE`, trained."""
        path = self._path(name)
        if not path.is_file():
            self._train(name, path)
        found = load_network(path)
        assert isinstance(found, FibreNetwork)
        return found.eval()

    def _train(self, name: str, path: Path) -> None:
        torch.manual_seed(0)
        network = make_network(name)
        batches = {
            number: PatchDataModule(
                self.training,
                FibreTask(),
                radius=graph_radius(network),
                box_size=BOX_SIZE,
                n_boxes=number,
                focus_share=FOCUS_SHARE,
                augment=AUGMENTATION,
                validation=shown_in_validation(self.validation(MAIN_B_VALUE)[0]),
            )
            for number in (FIRST_BOXES, N_BOXES)
        }
        FibreTask().initialise(network.train(), batches[FIRST_BOXES].first())
        every = max(1, self.steps // VALIDATIONS)
        train(
            network,
            batches[N_BOXES],
            Budget(steps=self.steps),
            stopping=Stopping(every, patience=VALIDATIONS, falling=True),
            folder=path.with_suffix(""),
            learning_rate=LEARNING_RATE,
            kept=(network,),
            report=lambda progress: report(name, progress),
        )
        scans = [head.dwi for head in self.training]
        about = notes(
            FibreTask.name,
            scans,
            fewest=min(len(dwi.b_values) - 1 for dwi in scans),
            caution="trained on simulated signal only; for research only, not for diagnosis",
            data="simulated diffusion signal",
        )
        save_network(network, path, about)

    def methods(self, b_value: float, directions: int) -> dict[str, Predict]:
        """All methods, the deconvolutions with their settings for such scans."""
        return {
            NETWORK: by_network(self.network(NETWORK)),
            VOXELWISE: by_network(self.network(VOXELWISE)),
            **{one.method: with_setting(one) for one in self.settings(b_value, directions)},
        }

    def settings(self, b_value: float, directions: int) -> tuple[Setting, ...]:
        """What suits the heads of the validation best, for each of the deconvolutions."""
        validation = cache(partial(self.validation, b_value))

        @cache  # methods share simulated heads and their MP-PCA
        def voxels(radius: int) -> list[TuningVoxels]:
            return [TuningVoxels.of(head, directions, radius) for head in validation()]

        def chosen(method: str) -> tuple[Setting, ...]:
            name = f"settings-{method.replace(' ', '-')}-{b_value:.0f}-{directions}.json"
            return kept.read_or_make(
                self.folder / name, Setting, lambda: [tune(method, voxels, b_value, directions)]
            )

        return tuple(one for method in DECONVOLUTIONS for one in chosen(method))

    def rows(self, b_value: float, directions: int) -> tuple[Row, ...]:
        """Scores of all methods on the heads of the tests."""

        def compared() -> list[Row]:
            methods = self.methods(b_value, directions)
            tests = heads.other_heads(self.tests, TEST_SEED, b_value)
            return [compare(head, methods, b_value, directions) for head in tests]

        path = self.folder / f"rows-{b_value:.0f}-{directions}.json"
        return kept.read_or_make(path, Row, compared)

    def real_rows(self) -> list[RealRow]:
        """Angles on the real scan; none without it."""
        return [] if self.real is None else RealScan.read(self.real).compare(self.methods)

    def picture(self) -> Figure:
        """Peaks in a head of the tests: known fibres as in the scores, found peaks as they are."""
        (head,) = heads.other_heads(1, TEST_SEED, MAIN_B_VALUE)
        rows = heads.white_matter(head, len(head.peaks), seed=0)
        fibres, _, _ = kinds_of_voxels(head.peaks)
        panels = {"known": np.where(fibres[..., None], head.peaks, 0)}
        for number in heads.SHOWN:
            dwi = heads.with_directions(head.dwi, number)
            for name, predict in self.methods(MAIN_B_VALUE, number).items():
                if name in (NETWORK, RIDGE_DENOISED):
                    peaks = np.zeros_like(head.peaks)
                    peaks[rows] = find_peaks(predict(dwi, rows))
                    panels[f"{name}, {number} directions"] = peaks
        return draw_peaks(head.dwi, panels)

    def trainings(self) -> list[Training]:
        """How both networks were trained."""
        found = []
        for name in (NETWORK, VOXELWISE):
            weights = sum(values.numel() for values in self.network(name).parameters())
            found.append(Training(name, self.heads, self.steps, weights))
        return found

    def results(self) -> Results:
        """All of them."""
        cells = [(b_value, number) for b_value in B_VALUES for number in heads.SHOWN]
        return Results(
            trainings=tuple(self.trainings()),
            settings=tuple(one for cell in cells for one in self.settings(*cell)),
            rows=tuple(row for cell in cells for row in self.rows(*cell)),
            real=tuple(self.real_rows()),
        )

    def _path(self, name: str) -> Path:
        return self.folder / f"{name.replace(' ', '-')}.safetensors"


def make_network(name: str) -> FibreNetwork:
    """The network of a name, not trained."""
    if name == VOXELWISE:
        return FibreNetwork(p_radius=0.0, quadrature="sum")
    return FibreNetwork(p_radius=RADIUS)


def by_network(network: FibreNetwork) -> Predict:
    """The prediction of a network."""
    return lambda dwi, rows: predict_blocks(network, scale_by_response(dwi))[rows]


def shown_in_validation(head: SimulatedFibres) -> list[SimulatedFibres]:
    """A head with each of the numbers of directions, as networks take it."""
    shown = (heads.with_directions(head.dwi, number) for number in heads.SHOWN)
    return [replace(head, dwi=dwi).scaled() for dwi in shown]


def settings_of(method: str) -> Sequence[Deconvolution | RidgeDeconvolution]:
    """Settings of a deconvolution to choose from."""
    return all_ridges() if method in (RIDGE, RIDGE_DENOISED) else all_settings()


def with_setting(one: Setting) -> Predict:
    """The deconvolution of a setting."""
    kind = RidgeDeconvolution if one.method in (RIDGE, RIDGE_DENOISED) else Deconvolution
    deconvolution = kind(one.order, one.penalty, one.threshold)
    return Denoised(deconvolution, one.patch_radius) if one.patch_radius else deconvolution


def tune(
    method: str,
    voxels: Callable[[int], Sequence[TuningVoxels]],
    b_value: float,
    directions: int,
) -> Setting:
    """The setting of a deconvolution with the least error at the crossings of some heads.

    `voxels` gives those of all heads after MP-PCA of a radius, or with 0 as they are.
    """
    tried = []
    for radius in PATCH_RADII if method in (DENOISED, RIDGE_DENOISED) else (0,):
        for one in settings_of(method):
            error = float(np.mean([some.error(one) for some in voxels(radius)]))
            shape = (one.order, one.penalty, one.threshold)
            tried.append(Setting(method, b_value, directions, *shape, radius, error))
    best = min(tried, key=lambda one: one.crossing_error)
    console.print(best, markup=False)
    return best


@dataclass(frozen=True, eq=False)
class TuningVoxels:
    """Voxels with crossings of a head, on which deconvolutions are tuned.

    Parameters
    ----------
    dwi : DWI
        The scan.
    rows : (n,) int array
        The voxels.
    known : FibreMap
        Their fibres.
    """

    dwi: DWI
    rows: NDArray[np.intp]
    known: FibreMap

    @classmethod
    def of(cls, head: SimulatedFibres, directions: int, radius: int) -> TuningVoxels:
        """Draw `TUNED` of them, in a scan with so many directions, after MP-PCA of a radius."""
        dwi = heads.with_directions(head.dwi, directions)
        _, _, crossing = kinds_of_voxels(head.peaks)
        rows = np.random.default_rng(0).permutation(np.flatnonzero(crossing))[:TUNED]
        known = FibreMap(head.name, head.fodf[rows], head.peaks[rows], None)
        return cls(denoised(dwi, radius) if radius else dwi, rows, known)

    def error(self, deconvolve: Predict) -> float:
        """The error of a deconvolution there, in degrees."""
        found = score_fibres([replace(self.known, fodf=deconvolve(self.dwi, self.rows))])
        return float(found.rows[-1].columns["crossing_error"])


def compare(
    head: SimulatedFibres, methods: Mapping[str, Predict], b_value: float, directions: int
) -> Row:
    """Scores of methods on a head, in the same voxels of white matter."""
    dwi = heads.with_directions(head.dwi, directions)
    rows = heads.white_matter(head, SCORED, seed=0)
    scores = {}
    for name, predict in methods.items():
        one = FibreMap(head.name, predict(dwi, rows), head.peaks[rows], head.fodf[rows])
        scores[name] = dict(score_fibres([one]).rows[-1].columns)
    row = Row(head.name, b_value, directions, len(rows), scores)
    console.print(row, markup=False)
    return row


@dataclass(frozen=True, eq=False)
class RealScan:
    """A real scan, and the peaks beside it in some of its voxels.

    Parameters
    ----------
    dwi : DWI
        The scan.
    rows : (n,) int array
        The voxels that are compared.
    peaks : (n, 3, 3) array
        The peaks beside the scan there, the longest first.
    """

    dwi: DWI
    rows: NDArray[np.intp]
    peaks: NDArray[np.float32]

    @classmethod
    def read(cls, folder: Path) -> RealScan:
        """Read the slab of the tests, and draw voxels with an FA above `LEAST_FA`."""
        files = (f"Diffusion.{ending}" for ending in ("nii.gz", "bvals", "bvecs"))
        dwi = read_dwi(*(folder / name for name in files), folder / "nodif_brain_mask.nii.gz")
        lower, upper = heads.TEST_SLAB
        points = dwi.voxel_centres()
        inside = ((points >= lower) & (points <= upper)).all(axis=1)
        dwi = dwi.with_voxels(dwi.volume(inside).astype(bool))
        peaks = read_peaks(folder / "peaks.nii.gz", dwi.mask)
        white = (tensor_maps(dwi)[0] > LEAST_FA) & peaks[:, 0].any(axis=-1)
        rows = np.random.default_rng(0).permutation(np.flatnonzero(white))[:SCORED]
        return cls(dwi, rows, peaks[rows])

    def compare(self, methods: Callable[[float, int], Mapping[str, Predict]]) -> list[RealRow]:
        """Angles of all methods, given those for a b-value and a number of directions."""
        found = {
            number: {
                name: find_peaks(predict(heads.with_directions(self.dwi, number), self.rows))
                for name, predict in methods(MAIN_B_VALUE, number).items()
            }
            for number in heads.SHOWN
        }
        most, few = (found[number] for number in heads.SHOWN)
        return [self._row(name, few[name], most[name]) for name in most]

    def _row(self, name: str, few: NDArray[np.float32], most: NDArray[np.float32]) -> RealRow:
        _, single, crossing = kinds_of_voxels(self.peaks)
        console.print(f"{name}: {single.sum()} single fibres, {crossing.sum()} crossings")

        def angle(known: NDArray[np.float32], found: NDArray[np.float32], number: int) -> float:
            chosen = single if number == 1 else crossing
            return float(np.nanmean(angles_between(known[chosen, :number], found[chosen])))

        return RealRow(
            name,
            *(angle(most, few, number) for number in (1, 2)),
            *(angle(self.peaks, few, number) for number in (1, 2)),
            *(angle(self.peaks, most, number) for number in (1, 2)),
            *(float(peaks[crossing, 1].any(axis=-1).mean()) for peaks in (few, most)),
        )


def ship(study: Study, results: Results, weights: Path, card: Path) -> None:
    """Copy the network to the package, and write its card."""
    shutil.copyfile(study.folder / f"{NETWORK}.safetensors", weights)
    (trained,) = (one for one in results.trainings if one.network == NETWORK)
    write_card(
        card,
        TEMPLATE,
        weights,
        TAGS,
        scores=scores_table(results),
        tests=len({row.head for row in results.rows}),
        weights=trained.weights,
        heads=trained.heads,
        fewest=heads.DIRECTIONS[0],
        most=heads.DIRECTIONS[1],
        lowest_snr=heads.SNR[0],
        highest_snr=heads.SNR[1],
        steps=trained.steps,
        boxes=N_BOXES,
        box=BOX_SIZE,
    )


def report(name: str, progress: Progress) -> None:
    """Print the loss from time to time."""
    if progress.steps % 50 == 0:
        console.print(f"{name}: step {progress.steps}, loss {progress.loss:.4f}", markup=False)


@app.command()
def main(
    out: Out = OUT,
    real: Annotated[
        Path | None, typer.Option(help="Folder of the example scan of TractSeg.")
    ] = None,
    training: Annotated[int, typer.Option(min=1, help="Heads of the training.")] = HEADS,
    tests: Annotated[int, typer.Option(min=1, help="Other heads, which are scored.")] = TESTS,
    steps: Annotated[int, typer.Option(min=1, help="Of each training.")] = STEPS,
    save: Save = False,
    to_ship: ToShip = False,
) -> None:
    """Train, compare, and keep the results."""
    study = Study(out, real, training, tests, steps)
    results = study.results()
    console.print(*(make(results) for make in TABLES.values()), sep="\n\n", markup=False)
    if save:
        results.write(RESULTS)
        write_page(results, PAGE)
        study.picture().savefig(PICTURE, dpi=90)
    if to_ship:
        ship(study, results, WEIGHTS, CARD)


if __name__ == "__main__":
    start(app)
