"""Options shared by several commands."""

from __future__ import annotations

import inspect
import math
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from tripq import __version__
from tripq.scans import Frame
from tripq.tasks import task_names
from tripq.tasks.lesions.names import MAX_MIN_VOLUME

Device = Literal["auto", "cpu", "cuda"]

_BESIDE = "the file beside the scan"
FOUND_BRAIN = "extracted from b0 by median_otsu of dipy"

_LABELS = ("--participant-label", "--session-label")
_UNITS = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_UNITS |= {"KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def parse_memory(text: str) -> float:
    """Bytes from words such as ``4GB``, ``500MB`` or ``2GiB``.

    >>> parse_memory("4GB"), parse_memory("1.5 GiB")
    (4000000000.0, 1610612736.0)
    """
    found = re.fullmatch(r"\s*(\d+\.?\d*)\s*([KMGT]I?|)(B?)\s*", text, re.IGNORECASE | re.ASCII)
    if found is None or float(found[1]) == 0 or (size := float(found[1])) == math.inf:
        raise typer.BadParameter(f"{text[:30]!r} is not a memory size; write 4GB or 500MB.")
    if not found[2] and not found[3]:
        raise typer.BadParameter(f"{text[:30]!r} has no unit; write 4GB or 500MB.")
    return size * _UNITS[found[2].upper()]


def threads_of_process(threads: int | None, cpus: int | None, processes: int) -> int | None:
    """Threads of each process, where all processes together use at most `cpus` cores.

    >>> threads_of_process(None, 8, processes=2), threads_of_process(3, 8, processes=2)
    (4, 3)
    """
    if cpus is None:
        return threads
    share = max(1, cpus // processes)
    return share if threads is None else min(threads, share)


def use_work_dir(folder: Path) -> None:
    """Set the folder for temporary files and caches, for this process and its children.

    Cache folders that the environment already names are not changed.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["TMPDIR"] = str(folder)
    tempfile.tempdir = None  # reset: it is determined again
    for name in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "MPLCONFIGDIR"):
        os.environ.setdefault(name, str(folder / name.lower().removesuffix("_dir")))


def output(contents: str) -> Any:
    """Option of the folder for the files that a command writes."""
    return typer.Option("--output", "-o", metavar="FOLDER", help=f"Folder for the {contents}.")


def min_volume(show_default: str) -> Any:
    """Option of the minimum volume of a lesion candidate."""
    return typer.Option(
        metavar="ML",
        min=0,
        max=MAX_MIN_VOLUME,
        help="Minimum volume of a lesion candidate in ml; smaller ones are not marked.",
        show_default=show_default,
    )


def labels(kind: str, prefix: str) -> Any:
    """Option of the participants or sessions that a command processes."""
    return typer.Option(
        f"--{kind}-label",
        metavar="LABEL...",
        help=f"Process only these {kind}s, with or without '{prefix}'; after the folders.",
        show_default="all",
    )


def show_version(wanted: bool) -> None:
    """Print the version and exit, if `wanted`."""
    if wanted:
        typer.echo(f"tripq {__version__}")
        raise typer.Exit


def check_task(name: str) -> str:
    """Return the name of a task; reject an unknown name with the list of known ones."""
    if name not in task_names():
        raise typer.BadParameter(f"unknown task {name[:30]!r}; known: {', '.join(task_names())}.")
    return name


class Command(TyperCommand):
    """A command with help as wide as the screen and switches shown without a value."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self.help = self.help and unwrap(self.help)
        for parameter in self.params:
            _show_no_value_of_a_switch(parameter)

    def get_help_option(self, ctx: Any) -> Any:
        """Show the help option like the other switches."""
        return _show_no_value_of_a_switch(super().get_help_option(ctx))


def _show_no_value_of_a_switch(parameter: Any) -> Any:
    """Remove the word ``<bool>`` that Typer shows."""
    if getattr(parameter, "is_flag", False) and parameter.metavar is None:
        parameter.metavar = ""
    return parameter


def unwrap(text: str) -> str:
    r"""Put each paragraph on one line; indented paragraphs are unchanged.

    >>> unwrap("Look at\nthis.\n\n    tripq info\n\nAnd at\nthat.")
    'Look at this.\n\n    tripq info\n\nAnd at that.'
    """
    return "\n\n".join(
        paragraph if paragraph.startswith(" ") else " ".join(paragraph.split())
        for paragraph in inspect.cleandoc(text).split("\n\n")
    )


class BIDSCommand(Command):
    """A command with lists of labels, ``--participant-label 01 02``, as in BIDS Apps."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat the option for every label."""
        return super().parse_args(ctx, spread_labels(args))


def spread_labels(arguments: Sequence[str]) -> list[str]:
    """Repeat an option for labels before each of its values.

    The older spelling of the option, with ``_``, is replaced by the one with ``-``.

    >>> spread_labels(["in", "out", "participant", "--participant_label", "01", "02", "-q"])
    ['in', 'out', 'participant', '--participant-label', '01', '--participant-label', '02', '-q']
    """
    spread: list[str] = []
    option, fresh = "", False
    for word in arguments:
        if (dashed := word.replace("_", "-")) in _LABELS:
            word = option = dashed
            fresh = True
        elif word.startswith("-"):
            option = ""
        elif option and not fresh:
            spread.append(option)
        else:
            fresh = False
        spread.append(word)
    return spread


ScanFile = Annotated[Path, typer.Argument(help="Diffusion scan: 4D NIfTI, .nii or .nii.gz.")]
BVal = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="b-values in s/mm2.", show_default=_BESIDE),
]
BVec = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Gradient directions: FSL's, or an MRtrix table (.b, with --frame world and without "
        "--bval).",
        show_default=_BESIDE,
    ),
]
Mask = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Brain mask on the grid of the scan.",
        show_default=FOUND_BRAIN,
    ),
]
FrameOption = Annotated[
    Frame,
    typer.Option(
        help="The axes of the gradient directions.  'fsl': the image axes, with x negated if the "
        "determinant of the affine is positive, as FSL, BIDS and dcm2niix write them.  'voxel': "
        "the image axes as stored.  'world': the millimetre axes, as MRtrix writes them.  No file "
        "records the frame; `tripq check` tests it by the fibres."
    ),
]
ParticipantLabel = Annotated[list[str] | None, labels("participant", "sub-")]
SessionLabel = Annotated[list[str] | None, labels("session", "ses-")]
Shells = Annotated[
    list[float] | None,
    typer.Option(
        "--shell",
        metavar="B",
        min=1,
        help="b-value in s/mm2 of a shell to use; repeat the option for more shells.  The others "
        "are excluded, as recommended for shells that the network was not trained on.",
        show_default="all",
    ),
]
VoxelSize = Annotated[
    float | None,
    typer.Option(
        "--voxel-size",
        metavar="MM",
        min=0.5,
        max=10,
        help="Resample the scan to cubic voxels of this edge in mm, and the map back.",
        show_default="resample only if the network was not trained on such voxels",
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Checkpoint, .safetensors.",
        show_default="the one included in tripq",
    ),
]
Threshold = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        help="Minimum probability of a lesion voxel.",
        show_default="that of the checkpoint",
    ),
]
MinVolume = Annotated[float | None, min_volume(show_default="that of the checkpoint, otherwise 0")]
DeviceOption = Annotated[
    Device, typer.Option(help="Device; 'auto' uses a CUDA device if one is available.")
]
Memory = Annotated[
    float,
    typer.Option(
        parser=parse_memory,
        metavar="SIZE",
        help="Approximate memory limit of the program; on a CUDA device, of the device memory.  A "
        "lower limit is slower and gives the same map.",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option("--nthreads", min=1, help="Threads of the CPU.", show_default="one for each core"),
]
ThreadsOfProcess = Annotated[
    int | None,
    typer.Option(
        "--nthreads",
        "--omp-nthreads",
        min=1,
        help="Threads of each process.",
        show_default="the cores, divided by the processes",
    ),
]
CPUs = Annotated[
    int | None,
    typer.Option(
        "--nprocs",
        "--n-cpus",
        "--n_cpus",
        min=1,
        help="Total number of cores for all processes (--devices) on this machine.",
        show_default="all",
    ),
]
WorkDir = Annotated[
    Path | None,
    typer.Option(
        "--work-dir",
        "-w",
        metavar="FOLDER",
        help="Folder for temporary files and compiled kernels; created if it does not exist.",
        show_default="the folders of the system",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing results.")]
Version = Annotated[
    bool,
    typer.Option("--version", callback=show_version, is_eager=True, help="Show the version."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show warnings and errors only.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show more messages.")]
LogFile = Annotated[
    Path | None, typer.Option("--log", metavar="FILE", help="Append all messages to a file.")
]
