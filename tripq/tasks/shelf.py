"""Scans for training in memory-mapped files, for cohorts larger than memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from tripq.infra.files import read_json, staged, write_json
from tripq.scans import DWI

_META, _ARRAYS = "scan.json", "arrays.bin"


class NamedScan(Protocol):
    """A scan for training with a name; the dataclass of a task adds arrays that are known of it."""

    @property
    def name(self) -> str:
        """Of the scan."""

    @property
    def dwi(self) -> DWI:
        """The scan, V voxels."""


Kept = TypeVar("Kept", bound=NamedScan)


def shelf_key(*parts: str) -> str:
    """Name of the folder of a scan: SHA-256 of all that its content depends on."""
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()


class Shelf(Generic[Kept]):
    """Scans in memory up to a limit, and further scans in files.

    The files are memory-mapped: the system keeps pages in memory while it has space, and the
    processes of a machine share them.  The values are the same as in memory.

    Parameters
    ----------
    folder : Path
        Folder of the files; created with the first one.
    memory : float
        Limit on the scans in memory, in bytes.
    kind : callable
        Makes a scan from keywords: ``name``, ``dwi``, and those attributes that are arrays with
        one number per voxel, (V,).
    """

    def __init__(self, folder: Path, memory: float, kind: Callable[..., Kept]) -> None:
        self.folder = folder
        self._left = memory
        self._kind = kind

    def keep(self, key: str, read: Callable[[], Kept]) -> Kept:
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
        scan = read()
        size = sum(array.nbytes for array in _arrays(scan))
        if size <= self._left:
            self._left -= size
            return scan
        while (there := self._get(key)) is None:  # another process may be replacing it
            self._put(key, scan)
        return there

    def _put(self, key: str, scan: Kept) -> None:
        dwi = scan.dwi
        with staged(self.folder / key, last=_META) as part:
            with (part / _ARRAYS).open("wb") as file:
                for array in _arrays(scan):
                    np.ascontiguousarray(array).tofile(file)
            write_json(
                part / _META,
                {
                    "name": scan.name,
                    "truth": {name: values.dtype.str for name, values in _truth(scan).items()},
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

    def _get(self, key: str) -> Kept | None:
        """A completely stored scan; None if there is none."""
        folder = self.folder / key
        try:
            about: dict[str, Any] = read_json(folder / _META)
        except FileNotFoundError:
            return None
        n_voxels, n_samples = about["voxels"], len(about["b_values"])
        # One map per scan, because systems limit the number of maps to some ten thousands.
        content = np.asarray(np.memmap(folder / _ARRAYS, np.uint8, "r"))
        sizes = [4 * n_voxels * n_samples, 4 * n_voxels]
        truth = {name: np.dtype(kind) for name, kind in about["truth"].items()}
        sizes += [kind.itemsize * n_voxels for kind in truth.values()]
        signal, b0, *known, mask = np.split(content, np.cumsum(sizes))
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
        values = (array.view(kind) for array, kind in zip(known, truth.values(), strict=True))
        return self._kind(name=about["name"], dwi=dwi, **dict(zip(truth, values, strict=True)))


def _truth(scan: NamedScan) -> dict[str, NDArray[Any]]:
    """What is known of the voxels of a scan, by field."""
    return {name: values for name, values in vars(scan).items() if isinstance(values, np.ndarray)}


def _arrays(scan: NamedScan) -> tuple[NDArray[Any], ...]:
    """The large arrays of a scan, in the order of the file: signal and b0 are float32."""
    dwi = scan.dwi
    return dwi.signal, dwi.b0, *_truth(scan).values(), dwi.mask
