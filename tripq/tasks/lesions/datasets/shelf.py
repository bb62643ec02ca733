"""Labelled scans in memory-mapped files, for cohorts larger than memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tripq.infra.files import read_json, staged, write_json
from tripq.scans import DWI
from tripq.tasks.lesions.datasets.cohort import LabelledSubject

_META, _ARRAYS = "scan.json", "arrays.bin"


class Shelf:
    """Scans in memory up to a limit, and further scans in files.

    The files are memory-mapped: the system keeps pages in memory while it has space, and the
    processes of a machine share them.  The values are the same as in memory.

    Parameters
    ----------
    folder : Path
        Folder of the files; created with the first one.
    memory : float
        Limit on the scans in memory, in bytes.
    """

    def __init__(self, folder: Path, memory: float) -> None:
        self.folder = folder
        self._left = memory

    def keep(self, key: str, read: Callable[[], LabelledSubject]) -> LabelledSubject:
        """Return a scan, and read it unless an earlier run has stored it.

        Parameters
        ----------
        key : str
            Name of its folder, unique to the scan.
        read : callable
            Reads the scan into memory.

        Raises
        ------
        OSError
            If the files cannot be written, as on a full disk.
        """
        if (there := self._get(key)) is not None:
            return there
        subject = read()
        size = sum(array.nbytes for array in _arrays(subject))
        if size <= self._left:
            self._left -= size
            return subject
        while (there := self._get(key)) is None:  # another process may be replacing it
            self._put(key, subject)
        return there

    def _put(self, key: str, subject: LabelledSubject) -> None:
        dwi = subject.dwi
        with staged(self.folder / key, last=_META) as part:
            with (part / _ARRAYS).open("wb") as file:
                for array in _arrays(subject):
                    np.ascontiguousarray(array).tofile(file)
            write_json(
                part / _META,
                {
                    "name": subject.name,
                    "shape": dwi.mask.shape,
                    "voxels": len(dwi.b0),
                    "b_values": dwi.b_values.tolist(),
                    "q": dwi.q.tolist(),
                    "affine": dwi.affine.tolist(),
                    "path": None if dwi.path is None else str(dwi.path),
                    "notes": dwi.notes,
                    "shell_tolerance": dwi.shell_tolerance,
                    "b0_volumes": dwi.b0_volumes,
                },
            )

    def _get(self, key: str) -> LabelledSubject | None:
        """A completely stored scan; None if there is none."""
        folder = self.folder / key
        try:
            about: dict[str, Any] = read_json(folder / _META)
        except FileNotFoundError:
            return None
        n_voxels, n_samples = about["voxels"], len(about["b_values"])
        # One map per scan, because systems limit the number of maps to some ten thousands.
        content = np.asarray(np.memmap(folder / _ARRAYS, np.uint8, "r"))
        sizes = [4 * n_voxels * n_samples, 4 * n_voxels, n_voxels]
        signal, b0, lesion, mask = np.split(content, np.cumsum(sizes))
        dwi = DWI(
            signal=signal.view(np.float32).reshape(n_voxels, n_samples),
            b_values=np.array(about["b_values"]),
            q=np.array(about["q"]),
            mask=mask.view(np.bool_).reshape(about["shape"]),
            affine=np.array(about["affine"]),
            b0=b0.view(np.float32),
            path=None if about["path"] is None else Path(about["path"]),
            notes=tuple(about["notes"]),
            shell_tolerance=about["shell_tolerance"],
            b0_volumes=about["b0_volumes"],
        )
        return LabelledSubject(about["name"], dwi, lesion.view(np.bool_))


def _arrays(subject: LabelledSubject) -> tuple[NDArray[Any], ...]:
    """The large arrays of a scan, in the order of the file: float32, float32, bool, bool."""
    dwi = subject.dwi
    return dwi.signal, dwi.b0, subject.lesion, dwi.mask
