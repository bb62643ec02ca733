"""``tripq train``: a network for scans of one's own."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tripq import __version__
from tripq.commands import options, ranks
from tripq.commands.session import Session, need, session
from tripq.commands.session import log as messages
from tripq.infra.files import read_json, sha256, staged, write_json
from tripq.infra.rank import Rank

if TYPE_CHECKING:
    from tripq.tasks.lesions.config import LesionConfig
    from tripq.tasks.lesions.datasets import LabelledFiles, LabelledSubject
    from tripq.tasks.lesions.datasets.shelf import Shelf
    from tripq.tasks.lesions.segmenter import LesionSegmenter
    from tripq.training import Progress, TrainingRecord

_WEIGHTS, _PAGE, _RECORD = "lesion-segmenter.safetensors", "validation.html", "training.json"
_SETTINGS = "settings.json"


def _show_example(wanted: bool) -> None:
    if wanted:
        from tripq.tasks.lesions.config import LesionConfig
        from tripq.training.config import example_config

        typer.echo(example_config(LesionConfig), nl=False)
        raise typer.Exit


def train(
    data: Annotated[
        Path, typer.Argument(help="BIDS dataset with diffusion scans, and masks in --truth.")
    ],
    out: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FOLDER", help="Where the trained network goes."),
    ],
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Settings, TOML; see --example-config.",
            show_default="those of --example-config",
        ),
    ] = None,
    truth: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Derivatives with a *_label-lesion_mask.nii.gz and a *_desc-brain_mask.nii.gz for "
            "every scan, on its grid.",
            show_default="DATA/derivatives/truth",
        ),
    ] = None,
    frame: options.FrameOption = "fsl",
    device: options.DeviceOption = "auto",
    memory: Annotated[
        float,
        typer.Option(
            parser=options.parse_memory,
            metavar="SIZE",
            help="What the scans may take, about.  More of them stay in files in the folder of the "
            "results; training is then as fast as the disk.",
        ),
    ] = "8GB",  # type: ignore[assignment]  # parsed by the option
    threads: options.Threads = None,
    devices: ranks.Devices = 1,
    nodes: ranks.Nodes = 1,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Forget an earlier training in this folder.")
    ] = False,
    example_config: Annotated[
        bool,
        typer.Option(
            "--example-config",
            callback=_show_example,
            is_eager=True,
            help="Print a file of settings with all defaults, and do nothing else.",
        ),
    ] = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    log: Annotated[
        Path | None,
        typer.Option(
            "--log",
            metavar="FILE",
            help="Append all messages to a file.",
            show_default="training.log in the folder of the results",
        ),
    ] = None,
) -> None:
    """Train a network on scans with known lesions, for `tripq segment`.

    Some participants are left out to validate on: training stops when they are segmented no better,
    the best network is kept, and its threshold is where their Dice is highest.  Call it again to go
    on where it was interrupted.

    Several processes divide the boxes of each step (n_boxes), and learn what one would.

    Writes the network (lesion-segmenter.safetensors), its scores on the participants that it is
    validated on (validation.html), and how it was trained (training.json).

    For example:

        tripq train --example-config > train.toml

        tripq train cohort --config train.toml -o trained
    """
    with session(quiet=quiet, verbose=verbose, log_file=log or out / "training.log") as screen:
        need("lightning", "panoptica", "torchmetrics")
        ranks.divide(devices, nodes, threads)
        rank = Rank.here()
        from tripq.commands.segmenting import choose_device, use_threads
        from tripq.infra.distributed import by_leader, connected
        from tripq.tasks.lesions.config import LesionConfig
        from tripq.tasks.lesions.datasets.shelf import Shelf
        from tripq.training.config import ConfigError, read_config

        settings = LesionConfig() if config is None else read_config(config, LesionConfig)
        use_threads(threads)
        chosen = choose_device(device)
        try:
            known = truth or data / "derivatives" / "truth"
            folder = out / "checkpoints"
            shelf = Shelf(out / "scans", memory / rank.local_count)
            cohort = _read_cohort(data, known, settings, frame, shelf, screen)
            wanted = {"frame": frame, **cohort.fingerprints, **asdict(settings)}
            with connected(rank):
                by_leader(rank, lambda: _claim(folder, wanted, overwrite))
                network, record = _train(cohort, settings, folder, chosen, screen)
        except ConfigError as error:
            raise ConfigError(f"{config or 'default settings'}: {error}") from error
        if not rank.leads:
            return
        lines = _write(out, network, record, cohort, settings, chosen, screen)
        if not quiet:
            screen.show(*lines, *(f"  {out / name}" for name in (_WEIGHTS, _PAGE, _RECORD)))


@dataclass(frozen=True, eq=False)
class Cohort:
    """The scans of a training.

    Parameters
    ----------
    name : str
        Of the dataset.
    simulated : bool
        Whether the dataset says that its signal is.
    training, validation : sequences of LabelledSubject
        Of different participants.
    voxel_size : float
        In mm.
    fingerprints : mapping
        SHA-256 of the scans and lesion masks of both.
    """

    name: str
    simulated: bool
    training: Sequence[LabelledSubject]
    validation: Sequence[LabelledSubject]
    voxel_size: float
    fingerprints: Mapping[str, Any]

    @property
    def b_values(self) -> list[int]:
        """Of all shells, in s/mm2, to the nearest 10."""
        scans = (*self.training, *self.validation)
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


class Watch:
    """Tells how training goes: every step on a bar, every validation in a message.

    Parameters
    ----------
    update : callable
        Of `Session.meter`.
    """

    def __init__(self, update: Callable[[float, str], None]) -> None:
        self._update = update
        self._start: tuple[float, float] | None = None
        self._told = 0

    def __call__(self, progress: Progress) -> None:
        """Take what is reported after a step."""
        now = perf_counter()
        if self._start is None:
            self._start = now, progress.spent
            self._told = len(progress.scores)  # before an interruption
        self.tell(progress.scores)
        detail = f"step {progress.steps:,}, loss {progress.loss:.3f}"
        if progress.scores:
            detail += f", average precision {progress.scores[-1][1]:.3f}"
        start, spent = self._start
        if progress.spent > spent:
            left = (now - start) * (1 - progress.spent) / (progress.spent - spent)
            detail += f", at most {_clock(left)} left"
        self._update(progress.spent, detail)

    def tell(self, scores: Sequence[tuple[int, float]]) -> None:
        """Say what validations gave that were not told."""
        if self._start is not None:
            for step, score in scores[self._told :]:
                messages.info("step %d: average precision %.4f in the validation.", step, score)
            self._told = len(scores)


def _clock(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> _clock(3725.4)
    '1:02:05'
    """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def _read_cohort(
    data: Path,
    truth: Path,
    settings: LesionConfig,
    frame: Any,
    shelf: Shelf,
    screen: Session,
) -> Cohort:
    """Find, split and read the scans; headers first, as reading takes long."""
    from tripq.tasks.lesions.datasets import (
        common_voxel_size,
        draw_validation,
        find_labelled,
        read_labelled,
    )
    from tripq.training.config import ConfigError

    found = find_labelled(data, truth, frame)
    for path, reason in found.left_out.items():
        messages.warning("%s: left out: %s", path, reason)
    voxel_size = common_voxel_size(found.files)
    split = settings.split
    if split.validation is None:
        held_out = draw_validation(found.participants, split.share, split.seed)
    else:
        held_out = tuple(label.removeprefix("sub-") for label in split.validation)
        if missing := sorted(set(held_out) - set(found.participants)):
            raise ConfigError(f"[split] validation: {data} has no labelled {', '.join(missing)}.")
        if not set(found.participants) - set(held_out):
            raise ConfigError("[split] validation: no participant is left to train on.")
    messages.info("validated on participants %s.", ", ".join(held_out))
    training: list[LabelledSubject] = []
    validation: list[LabelledSubject] = []
    fingerprints: dict[str, dict[str, list[str]]] = {"scans": {}, "validation_scans": {}}
    with screen.bar("reading", "scans") as update:
        for number, files in enumerate(found.files):
            update(number, len(found.files))
            digests = _digests(files)
            key = hashlib.sha256(" ".join((files.name, frame, *digests)).encode()).hexdigest()
            scan = shelf.keep(key, partial(read_labelled, files, frame))
            is_held_out = files.participant in held_out
            (validation if is_held_out else training).append(scan)
            kind = "validation_scans" if is_held_out else "scans"
            fingerprints[kind][files.name] = digests
    if not any(scan.lesion.any() for scan in validation):
        raise ConfigError(
            f"[split]: the participants to validate on ({', '.join(held_out)}) have no lesion "
            "voxel: choose others (validation), or another seed."
        )
    name, simulated = _describe(data)
    return Cohort(name, simulated, training, validation, voxel_size, fingerprints)


def _digests(files: LabelledFiles) -> list[str]:
    return [sha256(path) for path in files.all]


def _describe(data: Path) -> tuple[str, bool]:
    """Name of a dataset, and whether its signal is simulated."""
    path = data / "dataset_description.json"
    if not path.is_file():
        return data.resolve().name, False
    try:
        about = read_json(path)
        return str(about.get("Name", data.resolve().name)), "Simulation" in about
    except ValueError:
        messages.warning("%s: cannot be read.", path)
        return data.resolve().name, False


def _train(
    cohort: Cohort, settings: LesionConfig, folder: Path, device: str, screen: Session
) -> tuple[LesionSegmenter, TrainingRecord]:
    """Train, or go on, and tell how it goes."""
    from tripq.tasks.lesions.training import train_segmenter
    from tripq.training import choose_precision, training_state

    state = training_state(folder)
    if state != "new":
        how = "goes on from the last validation" if state == "interrupted" else "was finished"
        messages.info("%s: training %s.", folder, how)
    precision = choose_precision(settings.training.precision, device)
    messages.info("trained on the %s in %s.", device, precision)
    try:
        with screen.meter("training") as update:
            watch = Watch(update)
            network, record = train_segmenter(
                settings,
                cohort.training,
                cohort.validation,
                cohort.voxel_size,
                folder,
                device=device,
                report=watch,
            )
            watch.tell(record.scores)
    except KeyboardInterrupt:
        messages.warning("call it again to go on from the last validation in %s.", folder)
        raise
    return network, record


def _claim(folder: Path, wanted: Mapping[str, Any], overwrite: bool) -> None:
    """Make sure that the checkpoints of a folder, if any, come from the same training."""
    path = folder / _SETTINGS
    wanted = json.loads(json.dumps({key: wanted[key] for key in wanted if key != "notes"}))
    if overwrite:
        shutil.rmtree(folder, ignore_errors=True)
    if not folder.is_dir() or not any(folder.iterdir()):
        write_json(path, wanted)
        return
    try:
        found = read_json(path)
    except (OSError, ValueError):
        raise FileExistsError(
            0, "holds something else; take another folder, or --overwrite.", str(folder)
        ) from None
    if changed := list(_differences(found, wanted)):
        raise ValueError(
            f"{folder}: a training with other settings ({', '.join(changed)}): take another "
            "folder, or --overwrite."
        )


def _differences(found: Any, wanted: Any, place: str = "") -> Iterator[str]:
    """Where two trees differ.

    >>> list(_differences({"training": {"steps": 1, "seed": 0}}, {"training": {"steps": 2}}))
    ['training.seed', 'training.steps']
    """
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in sorted({*found, *wanted}):
            inner = f"{place}.{key}" if place else key
            yield from _differences(found.get(key), wanted.get(key), inner)
    elif found != wanted:
        yield place


def _write(
    out: Path,
    network: LesionSegmenter,
    record: TrainingRecord,
    cohort: Cohort,
    settings: LesionConfig,
    device: str,
    screen: Session,
) -> list[str]:
    """Write the network and all about it, or nothing; what to show."""
    import numpy as np

    from tripq.networks.checkpoint import save_network
    from tripq.tasks.lesions.pages.evaluation import EvaluatedSubject, write_evaluation_report
    from tripq.tasks.lesions.scores import best_threshold, score
    from tripq.tasks.lesions.segmentation import segment

    network.to(device)
    subjects = []
    with screen.bar("validating", "scans") as update:
        for number, scan in enumerate(cohort.validation):
            update(number, len(cohort.validation))
            probability = segment(network, scan.dwi, device=device)
            subjects.append(EvaluatedSubject(scan.name, scan.dwi.mask, probability, scan.lesion))
    network.cpu()
    probabilities = np.concatenate([subject.probability for subject in subjects])
    lesions = np.concatenate([subject.lesion for subject in subjects])
    threshold = best_threshold(probabilities, lesions)
    scores = score(probabilities, lesions, threshold)
    simulated = "trained on simulated diffusion signal; " if cohort.simulated else ""
    notes = {
        "threshold": repr(threshold),
        "voxel_size_mm": f"{cohort.voxel_size:g}",
        "b_values": " ".join(map(str, cohort.b_values)),
        "fewest_directions": str(cohort.fewest_directions),
        "caution": simulated + settings.notes.caution,
        "tripq": __version__,
        "data": f"{settings.notes.data or cohort.name}: {len(cohort.training)} scans to train on, "
        f"{len(cohort.validation)} to validate on",
    }
    shown = {
        **notes,
        "Scores": "of the subjects that the network and its threshold were chosen on: too good for "
        "others",
    }
    with staged(out, last=_RECORD) as part:
        save_network(network, part / _WEIGHTS, notes)
        title = "Validation of the trained network"
        write_evaluation_report(part / _PAGE, subjects, threshold, shown, title=title)
        write_json(
            part / _RECORD,
            {
                "tripq": __version__,
                "settings": asdict(settings),
                **cohort.fingerprints,
                "notes": notes,
                "device": device,
                "validation_scores": asdict(scores),
                "record": asdict(record),
            },
        )
    step, _ = record.best or (record.steps, 0.0)
    return [
        f"{record.steps:,} steps in {_clock(record.seconds)}; the best was the {step:,}th.",
        f"On {len(subjects)} validation scans: average precision {scores.average_precision:.3f}, "
        f"Dice {scores.dice:.3f} from a probability of {threshold:.3g} on.",
    ]
