"""A small head with lesions, and pages read as a browser reads them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element

import html5lib
import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform
from numpy.typing import NDArray

from tripq.scans import DWI

OBLIQUE = np.array(
    [[-4.8, 1.4, 0.0, 60.0], [1.4, 4.8, 0.0, -90.0], [0.0, 0.0, 5.0, -30.0], [0.0, 0.0, 0.0, 1.0]]
)


def make_scan(axes: str = "RAS") -> DWI:
    """A box of 6 x 8 x 10 voxels of 2 x 2 x 3 mm, stored along the given axes."""
    shape = (6, 8, 10)
    stored = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(tuple(axes)))
    affine = np.diag([2.0, 2.0, 3.0, 1.0]) @ inv_ornt_aff(stored, shape)
    mask = nib.orientations.apply_orientation(np.ones(shape, bool), stored)
    n = mask.size
    return DWI(
        signal=np.ones((n, 3), dtype=np.float32),
        b_values=np.array([0.0, 1000, 1000]),
        q=np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]]),
        mask=mask,
        affine=affine,
        b0=np.linspace(50, 100, n, dtype=np.float32),
    )


@dataclass(frozen=True, eq=False)
class Case:
    """A scan, a map of it with three lesions, and the truth, which has one of them and another."""

    dwi: DWI
    probability: NDArray[np.float64]
    truth: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Page:
    """A page: its source, and the tree that a browser makes of it."""

    source: str
    root: Element

    @property
    def text(self) -> str:
        """What a reader sees in its body, with single spaces."""
        body = self.root.find("body")
        assert body is not None
        hidden = {id(script.text) for script in body.iter("script")}
        return " ".join(" ".join(t for t in body.itertext() if id(t) not in hidden).split())

    def programs(self) -> list[str]:
        """The scripts that run, in their order."""
        scripts = (e for e in self.root.iter("script") if e.get("type") is None)
        return [script.text or "" for script in scripts]

    def table(self, name: str) -> list[list[str]]:
        """Rows of the body of a table, as words."""
        (table,) = (e for e in self.root.iter("table") if e.get("id") == name)
        body = table.find("tbody")
        assert body is not None
        return [[" ".join("".join(cell.itertext()).split()) for cell in row] for row in body]

    def cards(self) -> dict[str, str]:
        """What the large numbers say, by their names."""
        pairs = (e for e in self.root.iter("div") if e.get("class", "").startswith("card"))
        return {
            "".join(name.itertext()): "".join(value.itertext()) for name, value in map(list, pairs)
        }


def read_page(path: Path) -> Page:
    """Read a page; an error in its HTML is an error."""
    source = path.read_text(encoding="utf-8")
    parser = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False)
    return Page(source, parser.parse(source))


@pytest.fixture(scope="session")
def read() -> Callable[[Path], Page]:
    """Read pages."""
    return read_page


@pytest.fixture(scope="session")
def case() -> Case:
    """A head of 5 mm voxels, oblique, with two shells and three b0 volumes."""
    shape = (28, 34, 26)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    mask = x**2 + y**2 + z**2 < 0.9
    mask[:3] = False  # the grid is larger than the box around the mask
    voxels = np.argwhere(mask)
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(18, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    b_values = np.repeat([0.0, 700.0, 2000.0], [1, 6, 12])
    diffusivity = rng.uniform(0.5e-3, 2e-3, (len(voxels), 1))
    signal = np.exp(-diffusivity * b_values)
    signal[:, 0] = 1
    probability = rng.uniform(0, 0.2, len(voxels))
    truth = np.zeros(len(voxels), dtype=bool)

    def box(low: tuple[int, int, int], size: int) -> NDArray[np.bool_]:
        return ((voxels >= low) & (voxels < np.add(low, size))).all(axis=1)

    # The first image axis runs to the left: low indices are on the right side of the head.
    probability[box((6, 14, 12), 3)] = 0.9
    probability[box((20, 10, 8), 2)] = 0.7
    probability[box((20, 22, 18), 1)] = 0.6
    truth |= box((6, 14, 12), 3) | box((16, 16, 20), 2)
    dwi = DWI(
        signal=signal.astype(np.float32),
        b_values=b_values,
        q=np.concatenate([np.zeros((1, 3)), directions * np.sqrt(b_values[1:, None] / 1000)]),
        mask=mask,
        affine=OBLIQUE,
        b0=rng.uniform(80, 120, len(voxels)).astype(np.float32),
        path=Path("sub-01 <script>alert(1).nii.gz"),
        notes=("Negative intensities set to 0: <b>7</b>.",),
        b0_volumes=3,
    )
    return Case(dwi, probability, truth)
