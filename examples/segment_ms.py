"""Lesions of multiple sclerosis: train on a simulated cohort, compare, segment a real scan.

    python examples/segment_ms.py
    python examples/segment_ms.py --scan dwi.nii.gz --mask mask.nii.gz

All training is on simulated signal.  For research only.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated

# Threads that wait actively are many times slower while another program runs.  Torch reads the
# variable when it is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
import typer
from dipy.data import get_fnames
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from study.command import start
from torch import nn

from tripq.networks.apply import fits, load_model
from tripq.networks.blocks import graph_radius
from tripq.networks.checkpoint import CheckpointError, save_network
from tripq.networks.conv import ConvSegmenter
from tripq.scans import DWI, cubic_edge, read_dwi, write_map
from tripq.scans.brain import find_brain
from tripq.simulate import GradientTable, default_anatomy
from tripq.tasks.lesions.figures import comparison_figure, map_figure
from tripq.tasks.lesions.scores import Evaluation, best_threshold, evaluate, write_metrics
from tripq.tasks.lesions.segmentation import segment
from tripq.tasks.lesions.segmenter import LesionSegmenter
from tripq.tasks.lesions.simulate import LesionStatistics, Subject, simulate_cohort
from tripq.tasks.lesions.task import LesionTask
from tripq.training import Budget, PatchDataModule, TrainingRecord, train

CAUTION = "trained on simulated diffusion signal; for research only, not for diagnosis"
B_VALUE, N_DIRECTIONS = 1000.0, 32  # of the simulated scans
# Patients differ tenfold in their number of lesions; a few subjects are compared better with less.
LOADS = LesionStatistics(count_log_sd=0.3)
CNN_WIDTHS = (24, 24, 24)  # twice as wide was worse: fewer steps in the same time
RADIUS = 1.5  # voxels, as in `tripq train`

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console()


class Frame(str, Enum):
    """Axes along which gradient directions are written; see tripq.scans.frames."""

    fsl = "fsl"
    voxel = "voxel"
    world = "world"


class Device(str, Enum):
    """Where to compute."""

    cpu = "cpu"
    cuda = "cuda"


@dataclass(frozen=True)
class Plan:
    """How many subjects of what resolution, and how long to train on boxes of what size."""

    training: int
    validation: int
    test: int
    voxel_size: float
    box_size: int
    budget: Budget
    whole_head: bool = True


@dataclass(frozen=True, eq=False)
class Cohort:
    """Simulated subjects: to train on, to choose the threshold on, and held out for the scores."""

    training: list[Subject]
    validation: list[Subject]
    test: list[Subject]


@dataclass(frozen=True, eq=False)
class Contender:
    """A network, trained as suits it best.

    Settling the batch norms helps the equivariant network; it harms the 3D CNN, whose norms also
    see what lies outside the mask.
    """

    name: str
    file: str
    network: nn.Module
    learning_rate: float
    settle: bool

    @property
    def weights(self) -> int:
        """Number of weights."""
        return sum(weights.numel() for weights in self.network.parameters())


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("runs/segment_ms"),
    seed: Annotated[int, typer.Option(min=0, help="Of cohort, weights and boxes.")] = 0,
    minutes: Annotated[float, typer.Option(min=0.01, help="To train each network.")] = 1.2,
    subjects: Annotated[int, typer.Option(min=1, help="Simulated subjects to train on.")] = 8,
    voxel_size: Annotated[
        float | None,
        typer.Option(min=1.0, max=5.0, help="Of the cohort, mm.  [default: that of the real scan]"),
    ] = None,
    device: Annotated[Device, typer.Option(help="Where to compute.")] = Device.cpu,
    scan: Annotated[
        Path | None, typer.Option(help="Real scan (4D NIfTI).  [default: a crop from dipy]")
    ] = None,
    bval: Annotated[
        Path | None, typer.Option(help="Its b-values.  [default: the file beside it]")
    ] = None,
    bvec: Annotated[
        Path | None, typer.Option(help="Its directions.  [default: the file beside it]")
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(help="Its brain mask.  [default: found from b0]")
    ] = None,
    frame: Annotated[
        Frame, typer.Option(help="The axes that its directions are written along.")
    ] = Frame.fsl,
    network: Annotated[
        Path | None, typer.Option(help="Skip the training and apply this checkpoint.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A tiny run: it shows that all works, and no more.")
    ] = False,
) -> None:
    """Train on a simulated cohort, compare with a 3D CNN, and segment a real scan.

    Writes into the output folder: metrics.json and comparison.png (both networks on held-out
    subjects), the two networks (.safetensors), and for the real scan the probability of a lesion
    in every voxel, on its own grid (.nii.gz), with a picture.

    Both networks are trained on simulated diffusion signal: for research only.
    """
    if scan is None and any((bval, bvec, mask)):
        raise typer.BadParameter("--bval, --bvec and --mask describe a --scan, which is missing")
    if device is Device.cuda and not torch.cuda.is_available():
        raise typer.BadParameter("there is no CUDA device", param_hint="--device")
    # First, so that an unreadable scan is reported before minutes of training.
    real = read_real_scan(scan, bval, bvec, mask, frame)
    out.mkdir(parents=True, exist_ok=True)
    if network is not None:
        segmenter = load_for_voxels(network, real).to(device.value)
    else:
        size = voxel_size or mean_voxel_size(real)
        if quick:
            plan = Plan(2, 1, 1, size, 8, Budget(steps=10), whole_head=False)
        else:
            plan = Plan(subjects, 2, 3, size, 16, Budget(seconds=60 * minutes))
        segmenter = compare(make_cohort(plan, seed), plan, seed, out, device)
        if not fits(real, (size, size)):
            console.print(
                f"the real scan is left out: its voxels have {mean_voxel_size(real):g} mm, and the "
                f"network was trained on {size:g} mm"
            )
            return
    segment_real_scan(segmenter, real, out, device)


def read_real_scan(
    scan: Path | None, bval: Path | None, bvec: Path | None, mask: Path | None, frame: Frame
) -> DWI:
    """The scan that was asked for, within the brain; or the crop of brain that dipy ships."""
    if scan is None:
        return read_dwi(*get_fnames(name="small_64D"))
    dwi = read_dwi(scan, bval, bvec, mask, frame.value)
    return dwi if mask is not None else find_brain(dwi)


def mean_voxel_size(dwi: DWI) -> float:
    """Edge in mm of a cube as large as a voxel; rounded, as headers are."""
    return round(cubic_edge(dwi.affine), 2)


def load_for_voxels(path: Path, dwi: DWI) -> nn.Module:
    """A trained network, if it fits the voxels of a scan."""
    model = load_model(path)
    sizes = model.voxel_sizes
    if sizes is None or not fits(dwi, sizes):
        edges = " to ".join(f"{edge:g}" for edge in dict.fromkeys(sizes or ()))
        trained = f"{edges} mm" if edges else "unknown size"
        raise CheckpointError(
            f"{path}: trained on voxels of {trained}, but those of the scan have "
            f"{mean_voxel_size(dwi):g} mm: train again without --network."
        )
    return model.network


def make_cohort(plan: Plan, seed: int) -> Cohort:
    """Simulate all subjects with one gradient table, as the 3D CNN needs it."""
    total = plan.training + plan.validation + plan.test
    with progress_bar("simulating the cohort") as update:
        table = GradientTable.from_shells([B_VALUE], [N_DIRECTIONS])
        anatomy = default_anatomy(plan.voxel_size)
        if not plan.whole_head:
            anatomy = anatomy.within((-30, -40, 5), (30, 10, 25))
        subjects = []
        cohort = simulate_cohort(
            total, seed, anatomy=anatomy, table=table, vary_table=False, statistics=LOADS
        )
        for subject in cohort:
            subjects.append(subject)
            update(len(subjects) / total, f"{len(subjects)} of {total}")
    test = plan.training + plan.validation
    return Cohort(subjects[: plan.training], subjects[plan.training : test], subjects[test:])


def compare(cohort: Cohort, plan: Plan, seed: int, out: Path, device: Device) -> nn.Module:
    """Train both networks for the same time, score them on the held-out subjects, save everything.

    Returns the equivariant network.
    """
    torch.manual_seed(seed)
    radius = RADIUS * plan.voxel_size
    contenders = (
        Contender("equivariant", "equivariant", LesionSegmenter(p_radius=radius), 1e-2, True),
        Contender("3D CNN", "cnn", ConvSegmenter(1 + N_DIRECTIONS, widths=CNN_WIDTHS), 3e-3, False),
    )
    records = {c.name: train_contender(c, cohort, plan, seed, device) for c in contenders}
    lesions = [subject.lesion for subject in cohort.test]
    maps, evaluations = {}, {}
    for contender in contenders:
        probabilities = segment_all(contender, cohort.validation + cohort.test, device)
        validation = probabilities[: len(cohort.validation)]
        maps[contender.name] = probabilities[len(cohort.validation) :]
        threshold = choose_threshold(validation, [s.lesion for s in cohort.validation])
        evaluations[contender.name] = evaluate(maps[contender.name], lesions, threshold)
        save_network(
            contender.network,
            out / f"{contender.file}.safetensors",
            {
                "caution": CAUTION,
                "threshold": f"{threshold:.4f}",
                "voxel_size_mm": f"{plan.voxel_size:g}",
            },
        )
    show_table(contenders, records, evaluations, cohort)
    about = {
        "data": "simulated diffusion signal",
        "seed": seed,
        "subjects": {name: len(group) for name, group in vars(cohort).items()},
        "voxel_size_mm": plan.voxel_size,
        "threshold": "where Dice is highest on the validation subjects",
        "training": {
            c.name: {
                "weights": c.weights,
                "learning_rate": c.learning_rate,
                "batch norms settled": c.settle,
                "steps": records[c.name].steps,
                "seconds": records[c.name].seconds,
            }
            for c in contenders
        },
    }
    write_metrics(evaluations, out / "metrics.json", about)
    shown = int(np.argmax([lesion.sum() for lesion in lesions]))
    comparison_figure(
        cohort.test[shown].dwi,
        lesions[shown],
        {name: probabilities[shown] for name, probabilities in maps.items()},
        np.concatenate(lesions),
        {name: np.concatenate(probabilities) for name, probabilities in maps.items()},
        title=f"Lesions of a held-out subject (simulated diffusion signal), and the scores of all "
        f"{len(lesions)}",
    ).savefig(out / "comparison.png", dpi=130)
    return contenders[0].network


def train_contender(
    contender: Contender, cohort: Cohort, plan: Plan, seed: int, device: Device
) -> TrainingRecord:
    """Train one network, with a progress bar."""
    patches = PatchDataModule(
        cohort.training,
        LesionTask(),
        radius=graph_radius(contender.network),
        box_size=plan.box_size,
        seed=seed,
    )
    with progress_bar(f"training: {contender.name}") as update:
        return train(
            contender.network,
            patches,
            plan.budget,
            learning_rate=contender.learning_rate,
            settle=contender.settle,
            device=device.value,
            report=lambda p: update(p.spent, f"step {p.steps}, loss {p.loss:.3f}"),
        )


def segment_all(
    contender: Contender, subjects: list[Subject], device: Device
) -> list[NDArray[np.float32]]:
    """Probability maps of subjects, with a progress bar."""
    network = contender.network.to(device.value)
    maps = []
    with progress_bar(f"segmenting: {contender.name}") as update:
        for subject in subjects:
            maps.append(segment(network, subject.dwi, device=device.value))
            update(len(maps) / len(subjects), f"{len(maps)} of {len(subjects)}")
    return maps


def choose_threshold(maps: list[NDArray[np.float32]], lesions: list[NDArray[np.bool_]]) -> float:
    """Where Dice is highest; a half if these subjects happen to have no lesion voxel."""
    truth = np.concatenate(lesions)
    return best_threshold(np.concatenate(maps), truth) if truth.any() else 0.5


def show_table(
    contenders: tuple[Contender, ...],
    records: dict[str, TrainingRecord],
    evaluations: dict[str, Evaluation],
    cohort: Cohort,
) -> None:
    """Print the scores of the held-out subjects."""
    table = Table(
        title=f"held-out subjects: {len(cohort.test)}, simulated diffusion signal",
        caption=f"Dice: threshold from other subjects ({len(cohort.validation)})",
    )
    table.add_column("network")
    for name in ("weights", "steps", "seconds", "ROC AUC", "average precision", "Dice"):
        table.add_column(name, justify="right")
    for contender in contenders:
        record, scores = records[contender.name], evaluations[contender.name].pooled
        table.add_row(
            contender.name,
            f"{contender.weights:,}",
            f"{record.steps:,}",
            f"{record.seconds:.0f}",
            f"{scores.roc_auc:.3f}",
            f"{scores.average_precision:.3f}",
            f"{scores.dice:.3f}",
        )
    console.print(table)


def segment_real_scan(network: nn.Module, dwi: DWI, out: Path, device: Device) -> None:
    """Write the probability map of a real scan on its own grid, and a picture of it."""
    assert dwi.path is not None
    console.print(f"real scan: {dwi!r}", markup=False)
    for note in dwi.notes:
        console.print(f"  {note}", markup=False)
    strange = [shell.b_value for shell in dwi.shells if abs(shell.b_value - B_VALUE) > 200]
    if strange:
        listed = ", ".join(f"{b_value:.0f}" for b_value in strange)
        console.print(f"  caution: b = {listed} s/mm2 was never seen in training ({B_VALUE:.0f})")
    with progress_bar("segmenting: real scan") as update:
        probability = segment(
            network,
            dwi,
            device=device.value,
            report=lambda done, total: update(done / total, f"{done:,} of {total:,} voxels"),
        )
    stem = dwi.path.name.removesuffix(".gz").removesuffix(".nii")
    write_map(probability, dwi, out / f"{stem}_lesion_probability.nii.gz")
    map_figure(dwi, probability, title=f"{dwi.path.name}: lesion probability\n({CAUTION})").savefig(
        out / f"{stem}_lesion_probability.png", dpi=130
    )
    console.print(f"caution: {CAUTION}")
    console.print(f"results: {out}", markup=False)


@contextmanager
def progress_bar(name: str) -> Iterator[Callable[[float, str], None]]:
    """Show a bar; the yielded function takes the completed share and a short text."""
    columns = (
        TextColumn("{task.description:<26}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[detail]}"),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(name, total=1.0, detail="")
        yield lambda share, detail: progress.update(task, completed=share, detail=detail)


if __name__ == "__main__":
    start(app)
