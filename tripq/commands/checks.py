"""Checks of the arguments of a command, before it imports torch, which takes seconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tripq.commands.files import ScanFiles
from tripq.infra.files import check_writable, require_file
from tripq.infra.memory import PROGRAM_BYTES, spell_bytes
from tripq.infra.notes import read_network_metadata
from tripq.scans import Frame
from tripq.scans.read import check_files
from tripq.tasks import find_task, task_names


def check_inputs(files: ScanFiles, frame: Frame, weights: Path | None = None) -> None:
    """Open the files of a scan, without its intensities, and check that a checkpoint exists.

    Raises
    ------
    ValueError
        If a file is missing or cannot be used; the message names it.
    """
    check_files(files.scan, files.bval, files.bvec, files.mask, frame)
    if weights is not None:
        require_file(weights)


def find_network(given: str) -> Path:
    """File of a network: the given one, or the included one of a task that is given by name.

    Raises
    ------
    ValueError
        If there is no such file, it is no network of tripq, or the task has none.
    """
    if given in task_names():
        if (included := find_task(given).included_file) is None:
            raise ValueError(f"no network of the task {given} comes with tripq: give a file.")
        return included
    path = Path(given)
    if not path.exists():
        raise ValueError(
            f"{path}: no such file, and no task of this name; there are: {', '.join(task_names())}."
        )
    read_network_metadata(path)
    return path


def check_results(paths: Sequence[Path], overwrite: bool) -> None:
    """Check that results can be written, and that they replace files only if that is requested.

    Raises
    ------
    OSError
        If a result exists, or its folder cannot be written to; it names the file or the folder.
    """
    if not overwrite and (there := [path for path in paths if path.exists()]):
        raise FileExistsError(0, "exists already; --overwrite replaces it.", str(there[0]))
    for folder in dict.fromkeys(path.parent for path in paths):
        check_writable(folder)


def check_cohort_folder(folder: Path) -> None:
    """Check that a folder is writable, and is new, empty, or already contains a dataset.

    Raises
    ------
    OSError
        If it contains other files, or cannot be written to; it names the folder.
    """
    check_writable(folder)
    is_dataset = (folder / "dataset_description.json").is_file()
    if folder.exists() and not is_dataset and any(folder.iterdir()):
        raise FileExistsError(0, "contains other files: choose an empty folder.", str(folder))


def check_memory(memory: float, processes: int = 1) -> None:
    """Reject a memory limit that is too small for the program itself."""
    if memory <= PROGRAM_BYTES:
        whose = "" if processes == 1 else f" for each of {processes} processes"
        raise ValueError(
            f"--memory: {spell_bytes(memory)}{whose} are not enough: the program itself takes "
            f"{spell_bytes(PROGRAM_BYTES)}, and a scan needs more. 4GB is the default."
        )
