"""``tripq train``: training of a network on the user's scans."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tripq import __version__
from tripq.commands import options, ranks
from tripq.commands.checks import find_network
from tripq.commands.session import Session, need, session
from tripq.commands.session import log as messages
from tripq.infra.files import check_regular, read_json, staged, write_json
from tripq.infra.rank import Rank
from tripq.scans.bids import check_folder
from tripq.tasks import DEFAULT_TASK, find_task

if TYPE_CHECKING:
    from torch import nn

    from tripq.networks.start import Taken
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
    if context.params.get("example_config"):  # parsed before --task
        _print_example(name)
    return name


def _print_example(task: str) -> None:
    from tripq.training.config import example_config

    typer.echo(example_config(find_task(task).config), nl=False)
    raise typer.Exit


def train(
    data: Annotated[
        Path, typer.Argument(help="BIDS dataset with diffusion scans; the truth is in --truth.")
    ],
    out: Annotated[Path, options.output("trained network")],
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
            help="Derivatives with the truth of the task for every scan, and a "
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
            help="Task of the network.",
        ),
    ] = DEFAULT_TASK,
    start: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|NAME",
            help="Start from the weights of a checkpoint, .safetensors, or of the network that "
            "comes with tripq for a task, such as 'lesions': all weights of the same network, or "
            "the encoder of another one.  Omitted arguments of the network are those of the "
            "checkpoint.",
            show_default="random weights",
        ),
    ] = None,
    frame: options.FrameOption = "fsl",
    device: options.DeviceOption = "auto",
    memory: Annotated[
        float,
        typer.Option(
            parser=options.parse_memory,
            metavar="SIZE",
            help="Approximate memory limit of the scans.  Further scans are stored in files in "
            "the output folder; the speed of training then depends on the disk.",
        ),
    ] = "8GB",  # type: ignore[assignment]  # parsed by the option
    threads: options.Threads = None,
    devices: ranks.Devices = 1,
    nodes: ranks.Nodes = 1,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier training in this folder.")
    ] = False,
    example_config: Annotated[
        bool,
        typer.Option(
            "--example-config",
            callback=_show_example,
            is_eager=True,
            help="Print a settings file with all defaults, and exit.",
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
            show_default="training.log in the output folder",
        ),
    ] = None,
) -> None:
    """Train a network for a task on scans with known truth.

    Some participants are used for validation only: training stops when their score no longer
    rises, and the best network is kept.  A second call resumes an interrupted training.

    Several processes divide the boxes of each step (n_boxes); the result is that of one process,
    except for the task tissue, whose loss is not a mean over boxes.

    The command writes the network (.safetensors) for `tripq predict`, its scores on the validation
    participants (validation.html), and a record of the training (training.json).

    For example:

        tripq train --example-config > train.toml

        tripq train cohort --config train.toml -o trained

        tripq train cohort --start lesions -o trained
    """
    with session(quiet=quiet, verbose=verbose, log_file=log or out / "training.log") as screen:
        chosen_task = find_task(task)
        need(*chosen_task.needed)
        check_folder(data)
        if config is not None:
            _check_settings(config)
        if truth is not None:
            check_folder(truth)
        start_file = None if start is None else find_network(start)
        ranks.divide(devices, nodes, threads)
        rank = Rank.here()
        from tripq.commands.applying import choose_device, use_threads
        from tripq.infra.distributed import by_leader, connected
        from tripq.training.config import ConfigError, network_keys, read_config

        kind = chosen_task.config
        settings = kind() if config is None else read_config(config, kind)
        use_threads(threads)
        chosen = choose_device(device)
        try:
            if start_file is not None:
                from tripq.training.configured import started_config

                given = () if config is None else network_keys(config)
                settings = started_config(settings, start_file, given)
            known = truth or data / "derivatives" / "truth"
            folder = out / "checkpoints"
            share = memory / rank.local_count
            kept = out / "scans"
            cohort = chosen_task.read_cohort(data, known, settings, frame, kept, share, screen.bar)
            network = chosen_task.new_network(settings, cohort)
            taken = None
            if start_file is not None:
                from tripq.networks.start import start_from

                taken = start_from(network, start_file)
            wanted = {
                **{"task": task, "frame": frame, **cohort.fingerprints, **asdict(settings)},
                "start": taken and taken.sha256,
            }
            with connected(rank):
                by_leader(rank, lambda: _claim(folder, wanted, overwrite))
                training = _Training(chosen_task, network, taken, cohort, settings, chosen, screen)
                record = training.run(folder)
        except ConfigError as error:
            raise ConfigError(f"{config or 'default settings'}: {error}") from error
        if not rank.leads:
            return
        lines = training.write(out, record)
        if not quiet:
            written = (chosen_task.weights, _PAGE, _RECORD)
            screen.show(*lines, *(f"  {out / name}" for name in written))


def _check_settings(config: Path) -> None:
    """Check that the settings file exists; `tripq.training.config` reads it later."""
    try:
        check_regular(config)
    except OSError as error:
        raise ValueError(f"{config}: {error.strerror}.") from error


class Watch:
    """Reports progress of training: every step on a bar, every validation in a message.

    Parameters
    ----------
    update : callable
        Function yielded by `Session.meter`.
    score : str
        Name of the validation score.
    """

    def __init__(self, update: Callable[[float, str], None], score: str) -> None:
        self._update = update
        self._score = score
        self._start: tuple[float, float] | None = None
        self._told = 0

    def __call__(self, progress: Progress) -> None:
        """Show the progress after a step."""
        now = perf_counter()
        if self._start is None:
            self._start = now, progress.spent
            self._told = len(progress.scores)  # reported before an interruption
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
        """Report the scores of validations that were not reported before."""
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


@dataclass(frozen=True)
class _Training:
    """What is trained, and on which scans.

    Parameters
    ----------
    task : TaskCommands
        Of the network.
    network : nn.Module
        Its weights become those of the best validation.
    taken : Taken or None
        What it took from another network.
    cohort : Cohort
        The scans.
    settings : TrainingConfig
        Of the task.
    device : str
        Where to compute.
    screen : Session
        Where progress is shown.
    """

    task: TaskCommands[Any]
    network: nn.Module
    taken: Taken | None
    cohort: Cohort
    settings: TrainingConfig
    device: str
    screen: Session

    def run(self, folder: Path) -> TrainingRecord:
        """Train, or resume training from the checkpoints in a folder, and report progress."""
        from tripq.training import choose_precision, training_state

        state = training_state(folder)
        if state != "new":
            how = "resumes from the last validation" if state == "interrupted" else "is finished"
            messages.info("%s: training %s.", folder, how)
        elif self.taken is not None:
            messages.info("%s: taken: %s.", self.taken.path, self.taken.summary)
        precision = choose_precision(self.settings.training.precision, self.device)
        messages.info("training on the %s in %s.", self.device, precision)
        kept = () if self.taken is None else self.taken.modules
        try:
            with self.screen.meter("training") as update:
                watch = Watch(update, self.task.score)
                record = self.task.train(
                    self.network, self.settings, self.cohort, folder, self.device, watch, kept
                )
                watch.tell(record.scores)
        except KeyboardInterrupt:
            messages.warning("run it again to resume from the last validation in %s.", folder)
            raise
        return record

    def write(self, out: Path, record: TrainingRecord) -> list[str]:
        """Write the network and its records, or nothing; return the lines to show."""
        from tripq.networks.checkpoint import save_network

        cohort = self.cohort
        self.network.to(self.device)
        with self.screen.bar("validating", "scans") as update:
            validation = self.task.validate(self.network, cohort.validation, self.device, update)
        self.network.cpu()
        notes = {
            **validation.notes,
            "voxel_size_mm": cohort.voxel_note,
            "b_values": " ".join(map(str, cohort.b_values)),
            "fewest_directions": str(cohort.fewest_directions),
            "tripq": __version__,
            "task": self.task.name,
            **self._origin,
        }
        with staged(out, last=_RECORD) as part:
            save_network(self.network, part / self.task.weights, notes)
            validation.write_page(part / _PAGE, notes)
            write_json(
                part / _RECORD,
                {
                    "tripq": __version__,
                    "settings": asdict(self.settings),
                    **cohort.fingerprints,
                    **({} if self.taken is None else {"start": _described(self.taken)}),
                    "notes": notes,
                    "device": self.device,
                    "validation_scores": validation.scores,
                    "record": asdict(record),
                },
            )
        step, _ = record.best or (record.steps, 0.0)
        return [
            f"{record.steps:,} steps in {_clock(record.seconds)}; best network at step {step:,}.",
            validation.summary,
        ]

    @property
    def _origin(self) -> dict[str, str]:
        """Notes on the data, with those of the network that the training started from."""
        cohort, notes = self.cohort, self.settings.notes
        data = (
            f"{notes.data or cohort.name}: {len(cohort.training)} scans for training, "
            f"{len(cohort.validation)} for validation"
        )
        cautions = ["trained on simulated diffusion signal"] if cohort.simulated else []
        cautions.append(notes.caution)
        if self.taken is None:
            return {"data": data, "caution": "; ".join(cautions)}
        earlier, warned = (self.taken.notes.get(key, "") for key in ("data", "caution"))
        words = [word for text in (*cautions, warned) for word in text.split("; ") if word]
        return {
            "data": f"{data}; started from a network trained on {earlier or 'unknown data'}",
            "caution": "; ".join(dict.fromkeys(words)),
            "started_from": f"{self.taken.path.name}, SHA-256 {self.taken.sha256}: "
            f"{self.taken.summary}",
        }


def _claim(folder: Path, wanted: Mapping[str, Any], overwrite: bool) -> None:
    """Check that the checkpoints of a folder, if any, come from the same training."""
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
            0,
            "not a folder of tripq checkpoints; choose another folder, or --overwrite.",
            str(folder),
        ) from None
    if changed := list(_differences(found, wanted)):
        raise ValueError(
            f"{folder}: a training with other settings ({', '.join(changed)}): choose another "
            "folder, or --overwrite."
        )


def _differences(found: Any, wanted: Any, place: str = "") -> Iterator[str]:
    """Paths of the keys in which two nested dictionaries differ.

    >>> list(_differences({"training": {"steps": 1, "seed": 0}}, {"training": {"steps": 2}}))
    ['training.seed', 'training.steps']
    """
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in sorted({*found, *wanted}):
            inner = f"{place}.{key}" if place else key
            yield from _differences(found.get(key), wanted.get(key), inner)
    elif found != wanted:
        yield place


def _described(taken: Taken) -> dict[str, Any]:
    """What was taken, for the record of a training."""
    return {
        "name": taken.path.name,
        "SHA256": taken.sha256,
        "notes": dict(taken.notes),
        "taken": list(taken.tensors),
        "new": list(taken.new),
    }
