"""How far `tripq check` can be trusted: real and simulated scans, and worse versions of both.

    python perf/frame_check.py                        # simulated heads
    python perf/frame_check.py --real FOLDER --save   # and real scans; writes docs/frames.md
    python perf/frame_check.py --real FOLDER --order --save   # the last table alone

A scan, its brain taken out, is made worse: fewer directions, fewer slices, more noise.  `tripq
check` says something if the best of the 24 tables leads the next by `MIN_MARGIN`.  The first table
counts what it says where the gradient table is right, and how far a table leads where there are
fibres in enough voxels:

* right: it fits;
* silent: "cannot tell";
* false alarm: another one would fit.

This tells what happens with a wrong table, too.  The 24 changes are a group but for the sign, which
does not matter: with a table that needs one of them, the same 24 indices stand in another order
(a test says so).  If the check is right with the right table, it finds each of the 23 others and
how to mend it; if it is silent there, it misses all of them.

The second table counts the same for other margins.  The third reads whole scans in wrong frames:
in an oblique image these are no flips or permutations, but some degrees away from one.

With ``--order`` the directions of the same scans, of some more, and of their worse versions are
shuffled; `tripq.scans.order` should see it, and nothing in the right order.

Real scans are those of ``tests/dwi/test_real_scans.py``, in a folder of that layout.
"""

from __future__ import annotations

import last_on_path  # isort: split

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from pages import between
from scipy.spatial.transform import Rotation

from tripq.scans import DWI, Frame, orthogonal_part, read_dwi, to_world
from tripq.scans.brain import read_brain
from tripq.scans.coherence import MIN_MARGIN, MIN_VOXELS, TENSOR_B, fibre_coherence, frame_after
from tripq.scans.order import MIN_DIRECTIONS, Order, volume_order
from tripq.simulate import GradientTable, Grid, add_rician_noise, default_anatomy
from tripq.tasks.lesions.simulate import simulate_subject

PAGE = Path(__file__).parents[1] / "docs" / "frames.md"
BEGIN, END = "<!-- python perf/frame_check.py --save -->", "<!-- end -->"
BEGIN_ORDER = "<!-- python perf/frame_check.py --order --save -->"

N_DIRECTIONS, N_SLICES, SNRS = (6, 12, 20), (1, 3, 10), (20.0, 10.0, 5.0)
DRAWS, PLACES = 3, (0.2, 0.35, 0.5, 0.65, 0.8)  # of directions and noise; of slices
MARGINS = (0.0, 0.01, 0.02, 0.05, 0.1)
FRAMES: tuple[Frame, ...] = ("fsl", "voxel", "world")

REAL: dict[str, tuple[Frame, str, str]] = {
    "nlsam_invivo_1p8mm/dwi_1_8": ("voxel", ".nii.gz", ""),
    "tractseg_example/Diffusion": ("fsl", ".nii.gz", "nodif_brain_mask.nii.gz"),
    "dcm_qa_uih/dti_tra_dir16_PA_6_134431": ("fsl", ".nii", ""),
    "mrtrix3_crop/derived_msmt_dwi": ("fsl", ".nii.gz", "derived_msmt_mask.nii.gz"),
    "mdt_b1k_b2k/b1k_b2k_example_slices_24_38": (
        "fsl",
        ".nii.gz",
        "b1k_b2k_example_slices_24_38_mask.nii.gz",
    ),
}
"""Frame, extension and mask of real scans."""

MORE: dict[str, tuple[Frame, str, str]] = {
    name: ("fsl", ".nii.gz", "")
    for name in (
        "canon_61/3000_DTI_PA-ortho_cl",
        "canon_61/14000_DTI_PA-ortho-HT_cl",
        "philips/pd_701_DTI_Biobank_2mm_MB3S2_EPI",
        "philips/ph_601_WIP_dti_ax",
        "philips/ph_1201_DT_HIGH_32DIR_SENSE",
        "uih_series/dti_tra_dir16_PA_rot_12_132222",
    )
}
"""Further real scans, for the order of the directions."""

EDGES = ((2.5, 2.5, 2.5), (3.5, 3.5, 3.5), (2.0, 2.0, 4.0))
"""Of the voxels of simulated scans in mm."""


@dataclass(frozen=True)
class Case:
    """What the fibres say about a right table."""

    real: bool
    change: str
    n_voxels: int
    margin: float
    right_leads: bool

    def verdict(self, margin: float = MIN_MARGIN) -> str:
        """What `tripq check` says if the best table must lead by so much.

        >>> Case(True, "as it is", 9000, 0.04, right_leads=False).verdict()
        'silent'
        >>> Case(True, "as it is", 9000, 0.04, right_leads=False).verdict(0.03)
        'false alarm'
        """
        if self.n_voxels < MIN_VOXELS or self.margin < margin:
            return "silent"
        return "right" if self.right_leads else "false alarm"


def examine(dwi: DWI, change: str, *, real: bool) -> Case:
    """Follow the fibres of a scan that was read in the right frame."""
    found = fibre_coherence(dwi)
    return Case(real, change, found.n_voxels, found.margin, found.best.is_none)


def made_worse(dwi: DWI, rng: np.random.Generator) -> Iterator[tuple[str, DWI]]:
    """Yield a scan as it is and with less in it, each with what was done."""
    yield "as it is", dwi
    for n in N_DIRECTIONS:
        if n < len(dwi.b_values) - 1:
            for _ in range(DRAWS):
                yield f"{n} directions", _with_samples(dwi, _draw(dwi, n, rng))
    slices = np.flatnonzero(dwi.mask.any(axis=(0, 1)))
    for n in N_SLICES:
        if n < len(slices):
            for share in PLACES:
                start = slices[int(share * (len(slices) - n))]
                yield f"{n} slice{'s' if n > 1 else ''}", _with_slices(dwi, start, n)
    for snr in SNRS:
        for _ in range(DRAWS):
            yield f"noise added: b0 / σ = {snr:g}", _with_noise(dwi, snr, rng)


@dataclass(frozen=True)
class OrderCase:
    """What `tripq.scans.order` says about a right table, and about the same one shuffled."""

    real: bool
    change: str
    right: Order
    shuffled: Order


def examine_order(dwi: DWI, change: str, rng: np.random.Generator, *, real: bool) -> OrderCase:
    """Judge the order of directions, and that of the same ones shuffled within each shell."""
    q = dwi.q.copy()
    for shell in dwi.shells:
        q[shell.indices] = q[rng.permutation(shell.indices)]
    return OrderCase(real, change, volume_order(dwi), volume_order(replace(dwi, q=q)))


def order_table(cases: Sequence[OrderCase]) -> str:
    """Write the table about orders in Markdown."""
    lines = [
        "| | | cases | too few directions | right order called wrong | shuffled and seen | "
        "shuffled and missed | least explained, over chance |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for real in (True, False):
        for change in dict.fromkeys(case.change for case in cases if case.real == real):
            chosen = [case for case in cases if (case.real, case.change) == (real, change)]
            judged = [case for case in chosen if case.right.n_directions >= MIN_DIRECTIONS]
            seen = sum(case.shuffled.is_wrong for case in judged)
            ratios = [case.right.explained / case.right.usual for case in judged]
            cells = [
                *(_kind(real), change, len(chosen), len(chosen) - len(judged)),
                sum(case.right.is_wrong for case in judged),
                *(seen, len(judged) - seen),
                f"{min(ratios):.2f}" if ratios else "",
            ]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _draw(dwi: DWI, n: int, rng: np.random.Generator) -> np.ndarray:
    """Draw directions that determine a tensor well enough, as those of a scanner do."""
    q = dwi.q[1:]
    g = q / np.linalg.norm(q, axis=1, keepdims=True)
    best = None
    for _ in range(200):
        drawn = np.sort(rng.choice(len(g), n, replace=False))
        x, y, z = g[drawn].T
        design = np.stack([x * x, y * y, z * z, 2 * x * y, 2 * x * z, 2 * y * z], axis=1)
        if best is None or np.linalg.cond(design) < best[0]:
            best = np.linalg.cond(design), drawn
    assert best is not None
    return 1 + best[1]


def _with_samples(dwi: DWI, weighted: np.ndarray) -> DWI:
    kept = np.concatenate([[0], weighted])
    return replace(
        dwi,
        signal=np.ascontiguousarray(dwi.signal[:, kept]),
        b_values=dwi.b_values[kept],
        q=dwi.q[kept],
    )


def _with_slices(dwi: DWI, start: int, n: int) -> DWI:
    mask = np.zeros_like(dwi.mask)
    mask[..., start : start + n] = dwi.mask[..., start : start + n]
    kept = mask[dwi.mask]
    return replace(dwi, mask=mask, signal=dwi.signal[kept], b0=dwi.b0[kept])


def _with_noise(dwi: DWI, snr: float, rng: np.random.Generator) -> DWI:
    """Add noise whose standard deviation is the median of b0 over `snr`."""
    sigma = float(np.median(dwi.b0)) / snr
    noisy = add_rician_noise(dwi.signal * dwi.b0[:, None], sigma, rng)
    b0 = np.maximum(noisy[:, 0], 1e-3 * sigma)
    signal = noisy / b0[:, None]
    signal[:, 0] = 1
    return replace(dwi, signal=signal, b0=b0)


def real_scans(
    folder: Path, scans: Mapping[str, tuple[Frame, str, str]] = REAL
) -> Iterator[tuple[DWI, Frame]]:
    """Read the scans that are there, in their right frames, within the brain."""
    for name, (frame, extension, mask) in scans.items():
        path = (folder / name).with_name(Path(name).name + extension)
        if not path.is_file():
            continue
        # tables beside a mask have other stems
        stem = path.name.removesuffix(extension) if name in MORE else "*"
        (bval,) = path.parent.glob(f"{stem}.bval*")
        (bvec,) = path.parent.glob(f"{stem}.bvec*")
        if mask:
            yield read_dwi(path, bval, bvec, path.with_name(mask), frame), frame
        else:
            yield read_brain(path, bval, bvec, frame), frame


def simulated_scans(fineness: float = 1.0) -> Iterator[DWI]:
    """Simulate heads on oblique grids; their voxels are wider by 1 / fineness."""
    anatomy = default_anatomy(2.0)
    table = GradientTable.from_shells([1000.0], [30])
    brain = anatomy.grid.points()[anatomy.brain.ravel()]
    for seed, edges in enumerate(EDGES):
        affine = np.eye(4)
        turn = Rotation.from_euler("xyz", [12, -8, 5], degrees=True).as_matrix()
        flip = (-1, 1, 1) if seed % 2 else (1, 1, 1)
        affine[:3, :3] = turn * np.array(edges) / fineness * flip
        grid = Grid((2, 2, 2), affine).covering(brain, 4.0)
        yield simulate_subject(anatomy, table, seed, snr=25.0, grid=grid).dwi


def misread(dwi: DWI, right: Frame, wrong: Frame) -> DWI:
    """Read a scan as if its table were written along other axes."""
    of_right, of_wrong = (to_world(np.eye(3), dwi.affine, frame) for frame in (right, wrong))
    return replace(dwi, q=dwi.q @ of_right.T @ of_wrong)


def examine_frames(dwi: DWI, right: Frame) -> Iterator[tuple[float, str]]:
    """Yield the angle of each wrong frame to the nearest change, and the answer of the check."""
    of_right = to_world(np.eye(3), dwi.affine, right)
    for wrong in FRAMES:
        turn = of_right.T @ to_world(np.eye(3), dwi.affine, wrong)
        if np.allclose(turn, np.eye(3), atol=1e-3):
            continue  # both are the same in this image
        found = fibre_coherence(misread(dwi, right, wrong))
        better = frame_after(found.best, dwi.affine, wrong)
        if not found.is_clear:
            said = "silent"
        elif found.best.is_none:
            said = "it fits"
        else:
            same = better is not None and np.allclose(
                to_world(np.eye(3), dwi.affine, better), of_right, atol=1e-3
            )
            said = "the right frame" if same else "another"
        axes = orthogonal_part(dwi.affine)
        yield _angle_to_a_change(axes.T @ turn @ axes), said


def _angle_to_a_change(turn: np.ndarray) -> float:
    """How far a turn of components along the image axes is from the nearest change, in degrees."""
    nearest = np.rint(turn)
    if abs(np.linalg.det(nearest)) != 1:
        return 45.0
    rest = nearest.T @ turn
    return float(np.degrees(np.arccos(np.clip((np.trace(rest) - 1) / 2, -1, 1))))


def _kind(real: bool) -> str:
    return "real" if real else "simulated"


def tables(cases: Sequence[Case], frames: Sequence[tuple[bool, float, str]]) -> str:
    """Write all three tables in Markdown."""
    verdicts = ("right", "silent", "false alarm")
    lines = [
        "| | | cases | right | silent | false alarm | smallest lead of the right table | largest "
        "lead of a wrong one |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for real in (True, False):
        changes = list(dict.fromkeys(case.change for case in cases if case.real == real))
        for change in changes:
            chosen = [case for case in cases if (case.real, case.change) == (real, change)]
            counts = [sum(case.verdict() == verdict for case in chosen) for verdict in verdicts]
            leads = [
                [
                    case.margin
                    for case in chosen
                    if case.right_leads == right and case.n_voxels >= MIN_VOXELS
                ]
                for right in (True, False)
            ]
            cells = [
                _kind(real),
                change,
                len(chosen),
                *counts,
                f"{min(leads[0]):.3f}" if leads[0] else "",
                f"{max(leads[1]):.3f}" if leads[1] else "",
            ]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += ["", "| margin | right | silent | false alarm |", "| --- | --- | --- | --- |"]
    for margin in MARGINS:
        counts = [sum(case.verdict(margin) == verdict for case in cases) for verdict in verdicts]
        lines.append(f"| {margin:.0%} | {' | '.join(map(str, counts))} |")
    lines += [
        "",
        "| | angle between the wrong frame and the nearest flip or permutation | answer |",
        "| --- | --- | --- |",
        *(
            f"| {_kind(real)} | {angle:.0f}° | {said} |"
            for real, angle, said in sorted(frames, key=lambda row: (not row[0], *row[1:]))
        ),
    ]
    return "\n".join(lines)


def main(
    real: Annotated[Path | None, typer.Option(help="Folder of real scans.")] = None,
    save: Annotated[bool, typer.Option("--save", help="Write docs/frames.md.")] = False,
    fineness: Annotated[float, typer.Option(help="Of simulated voxels.")] = 1.0,
    order: Annotated[bool, typer.Option("--order", help="The order of directions alone.")] = False,
    seed: int = 0,
) -> None:
    """Count, and print or write the tables."""
    if order:
        _count_orders(real, fineness, seed, save=save)
        return
    cases: list[Case] = []
    frames: list[tuple[bool, float, str]] = []
    scans = [] if real is None else [(dwi, frame, True) for dwi, frame in real_scans(real)]
    simulated: list[tuple[DWI, Frame, bool]] = [
        (dwi, "fsl", False) for dwi in simulated_scans(fineness)
    ]
    for number, (dwi, frame, is_real) in enumerate([*scans, *simulated]):
        low = _with_samples(dwi, np.flatnonzero(dwi.b_values[1:] <= TENSOR_B) + 1)
        rng = np.random.default_rng((seed, number))
        for change, worse in made_worse(low, rng):
            cases.append(examine(worse, change, real=is_real))
            typer.echo(f"{low!r}: {cases[-1]}", err=True)
        frames += [(is_real, *found) for found in examine_frames(low, frame)]
    written = tables(cases, frames)
    typer.echo(written)
    if save:
        _write(BEGIN, written)


def _count_orders(real: Path | None, fineness: float, seed: int, *, save: bool) -> None:
    """Count the answers for right and for shuffled orders, and print or write the table."""
    scans = [] if real is None else [dwi for dwi, _ in real_scans(real, {**REAL, **MORE})]
    cases: list[OrderCase] = []
    for number, dwi in enumerate([*scans, *simulated_scans(fineness)]):
        rng = np.random.default_rng((seed, number))
        for change, worse in made_worse(dwi, rng):
            cases.append(examine_order(worse, change, rng, real=number < len(scans)))
            typer.echo(f"{dwi!r}: {cases[-1]}", err=True)
    written = order_table(cases)
    typer.echo(written)
    if save:
        _write(BEGIN_ORDER, written)


def _write(begin: str, written: str) -> None:
    """Put tables in their place on the page."""
    PAGE.write_text(between(PAGE.read_text(), begin, END, f"\n\n{written}\n\n"))


if __name__ == "__main__":
    typer.run(main)
