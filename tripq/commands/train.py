"""``tripq train``: a network for scans of one's own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tripq import __version__
from tripq.commands import options, ranks
from tripq.commands.session import Session, need, session
from tripq.commands.session import log as messages
from tripq.infra.files import read_json, staged, write_json
from tripq.infra.rank import Rank
from tripq.tasks import DEFAULT_TASK, find_task

if TYPE_CHECKING:
    from torch import nn

    from tripq.tasks import Cohort, TaskCommands
    from tripq.training import Progress, TrainingRecord
    from tripq.training.config import TrainingConfig

_PAGE, _RECORD = "validation.html", "training.json"
_SETTINGS = "settings.json"


def _show_example(context: typer.Context, wanted: bool) -> bool:
    if wanted and "task" in context.params:
        _print_example(context.params["task"])
    return wanted


def _choose_task(context: typer.Context, name: str) -> str:
    name = options.check_task(name)
    if context.params.get("example_config"):  # it came first
        _print_example(name)
    return name


def _print_example(task: str) -> None:
    from tripq.training.config import example_config

    typer.echo(example_config(find_task(task).config), nl=False)
    raise typer.Exit


def train(
    data: Annotated[
        Path, typer.Argument(help="BIDS dataset with diffusion scans; what is known is in --truth.")
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
            help="Derivatives with what the task has to know of every scan, and a "
            "*_desc-brain_mask.nii.gz, on its grid.",
            show_default="DATA/derivatives/truth",
        ),
    ] = None,
    task: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            is_eager=True,
            callback=_choose_task,
            help="What the network is trained for.",
        ),
    ] = DEFAULT_TASK,
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
    """Train a network for a task, on scans of which is known what it should give.

    Some participants are left out to validate on: training stops when the score on them gets no
    better, and the best network is kept.  Call it again to go on where it was interrupted.

    Several processes divide the boxes of each step (n_boxes), and learn what one would.

    Writes the network (.safetensors) for `tripq predict`, its scores on the participants that it
    is validated on (validation.html), and how it was trained (training.json).

    For example:

        tripq train --example-config > train.toml

        tripq train cohort --config train.toml -o trained
    """
    with session(quiet=quiet, verbose=verbose, log_file=log or out / "training.log") as screen:
        chosen_task = find_task(task)
        need(*chosen_task.needed)
        ranks.divide(devices, nodes, threads)
        rank = Rank.here()
        from tripq.commands.segmenting import choose_device, use_threads
        from tripq.infra.distributed import by_leader, connected
        from tripq.training.config import ConfigError, read_config

        kind = chosen_task.config
        settings = kind() if config is None else read_config(config, kind)
        use_threads(threads)
        chosen = choose_device(device)
        try:
            known = truth or data / "derivatives" / "truth"
            folder = out / "checkpoints"
            share = memory / rank.local_count
            kept = out / "scans"
            cohort = chosen_task.read_cohort(data, known, settings, frame, kept, share, screen.bar)
            wanted = {"task": task, "frame": frame, **cohort.fingerprints, **asdict(settings)}
            with connected(rank):
                by_leader(rank, lambda: _claim(folder, wanted, overwrite))
                network, record = _train(chosen_task, cohort, settings, folder, chosen, screen)
        except ConfigError as error:
            raise ConfigError(f"{config or 'default settings'}: {error}") from error
        if not rank.leads:
            return
        lines = _write(out, chosen_task, network, record, cohort, settings, chosen, screen)
        if not quiet:
            written = (chosen_task.weights, _PAGE, _RECORD)
            screen.show(*lines, *(f"  {out / name}" for name in written))


class Watch:
    """Tells how training goes: every step on a bar, every validation in a message.

    Parameters
    ----------
    update : callable
        Of `Session.meter`.
    score : str
        What a validation gives.
    """

    def __init__(self, update: Callable[[float, str], None], score: str) -> None:
        self._update = update
        self._score = score
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
            detail += f", {self._score} {progress.scores[-1][1]:.3f}"
        start, spent = self._start
        if progress.spent > spent:
            left = (now - start) * (1 - progress.spent) / (progress.spent - spent)
            detail += f", at most {_clock(left)} left"
        self._update(progress.spent, detail)

    def tell(self, scores: Sequence[tuple[int, float]]) -> None:
        """Say what validations gave that were not told."""
        if self._start is not None:
            for step, score in scores[self._told :]:
                messages.info("step %d: %s %.4f in the validation.", step, self._score, score)
            self._told = len(scores)


def _clock(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> _clock(3725.4)
    '1:02:05'
    """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def _train(
    task: TaskCommands[Any],
    cohort: Cohort,
    settings: TrainingConfig,
    folder: Path,
    device: str,
    screen: Session,
) -> tuple[nn.Module, TrainingRecord]:
    """Train, or go on, and tell how it goes."""
    from tripq.training import choose_precision, training_state

    state = training_state(folder)
    if state != "new":
        how = "goes on from the last validation" if state == "interrupted" else "was finished"
        messages.info("%s: training %s.", folder, how)
    precision = choose_precision(settings.training.precision, device)
    messages.info("trained on the %s in %s.", device, precision)
    try:
        with screen.meter("training") as update:
            watch = Watch(update, task.score)
            network, record = task.train(settings, cohort, folder, device, watch)
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
        found = {"task": DEFAULT_TASK, **read_json(path)}
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
    task: TaskCommands[Any],
    network: nn.Module,
    record: TrainingRecord,
    cohort: Cohort,
    settings: TrainingConfig,
    device: str,
    screen: Session,
) -> list[str]:
    """Write the network and all about it, or nothing; what to show."""
    from tripq.networks.checkpoint import save_network

    network.to(device)
    with screen.bar("validating", "scans") as update:
        validation = task.validate(network, cohort.validation, device, update)
    network.cpu()
    simulated = "trained on simulated diffusion signal; " if cohort.simulated else ""
    notes = {
        **validation.notes,
        "voxel_size_mm": f"{cohort.voxel_size:g}",
        "b_values": " ".join(map(str, cohort.b_values)),
        "fewest_directions": str(cohort.fewest_directions),
        "caution": simulated + settings.notes.caution,
        "tripq": __version__,
        "task": task.name,
        "data": f"{settings.notes.data or cohort.name}: {len(cohort.training)} scans to train on, "
        f"{len(cohort.validation)} to validate on",
    }
    with staged(out, last=_RECORD) as part:
        save_network(network, part / task.weights, notes)
        validation.write_page(part / _PAGE, notes)
        write_json(
            part / _RECORD,
            {
                "tripq": __version__,
                "settings": asdict(settings),
                **cohort.fingerprints,
                "notes": notes,
                "device": device,
                "validation_scores": validation.scores,
                "record": asdict(record),
            },
        )
    step, _ = record.best or (record.steps, 0.0)
    return [
        f"{record.steps:,} steps in {_clock(record.seconds)}; the best was the {step:,}th.",
        validation.summary,
    ]
