"""The pictures of docs/frames.md.

    python docs/figures/frames.py

The head is the ICBM152 template; fibres and signal are simulated. Slices are seen from above: the
world's x runs to the right of the picture, which is the right side of the head, and y up, to the
face.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from dipy.core.gradients import gradient_table
from dipy.reconst.dti import TensorModel
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from nibabel.affines import apply_affine
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from tripq.scans import DWI, Frame, read_dwi, to_world
from tripq.scans.coherence import CHANGES, fibre_coherence
from tripq.simulate import Anatomy, GradientTable, default_anatomy
from tripq.tasks.lesions.simulate import simulate_subject, write_subject

IMAGES = Path(__file__).parents[1] / "images"
AXIS, RIGHT, WRONG = "#56B4E9", "#00B583", "#D55E00"  # after Okabe and Ito: for any colour vision
DIRECTION = np.array([0.80, 0.60, 0.0])  # the gradient of the first two pictures, in the world


def main() -> None:
    """Draw all pictures into docs/images."""
    anatomy = default_anatomy(2.0)
    storage_figure(anatomy).savefig(IMAGES / "frames-storage.png", dpi=110)
    oblique_figure(anatomy).savefig(IMAGES / "frames-oblique.png", dpi=110)
    wrong_figure(anatomy).savefig(IMAGES / "frames-wrong.png", dpi=110)


# -- storage -------------------------------------------------------------------------------------


def storage_figure(anatomy: Anatomy) -> Figure:
    """One head and one gradient, in an image stored from right to left and from left to right."""
    figure = Figure(figsize=(9.5, 5.4), layout="constrained")
    left_to_right = np.diag([2.0, 2.0, 2.0, 1.0])
    right_to_left = np.diag([-2.0, 2.0, 2.0, 1.0])
    for axes, affine, title in zip(
        figure.subplots(1, 2),
        (right_to_left, left_to_right),
        ("first image axis to the left: det(affine) < 0", "to the right: det(affine) > 0"),
        strict=True,
    ):
        draw_head(axes, anatomy)
        corner = (-np.sign(affine[0, 0]) * 88, -118.0)
        draw_image_axes(axes, affine[:2, :2] / 2, corner)
        draw_arrow(axes, (-32.0, -24.0), 70 * DIRECTION[:2], RIGHT, "gradient")
        axes.set_title(title, fontsize=11)
        axes.set_xlabel(written(DIRECTION, affine), fontsize=10, family="monospace")
    return figure


def written(direction: NDArray[np.float64], affine: NDArray[np.float64]) -> str:
    """How the three frames write a world direction."""
    lines = []
    frames: tuple[Frame, ...] = ("fsl", "voxel", "world")
    for frame in frames:
        # The rows of the identity, taken to the world, are the axes that the frame writes along.
        components = to_world(np.eye(3), affine, frame) @ direction
        numbers = "  ".join(f"{c:5.2f}" for c in components + 0.0)
        lines.append(f"{frame:>6}:  {numbers}")
    return "\n".join(lines)


# -- oblique -------------------------------------------------------------------------------------


def oblique_figure(anatomy: Anatomy) -> Figure:
    """A grid that is turned against the world, and what comes of a table in the wrong frame."""
    figure = Figure(figsize=(9.5, 5.0), layout="constrained")
    turned = np.eye(4)
    turned[:3, :3] = Rotation.from_euler("z", 25, degrees=True).as_matrix() @ np.diag([-2, 2, 2])
    first, second = figure.subplots(1, 2)
    for axes in (first, second):
        draw_head(axes, anatomy)
        draw_grid(axes, turned)
    draw_image_axes(first, turned[:2, :2] / 2, (100.0, -88.0))
    draw_arrow(first, (-32.0, -24.0), 70 * DIRECTION[:2], RIGHT, "gradient")
    first.set_title("a slice turned by 25 degrees", fontsize=11)
    first.set_xlabel(written(DIRECTION, turned), fontsize=10, family="monospace")

    table = to_world(np.eye(3), turned, "fsl") @ DIRECTION  # as a bvec file has it
    draw_arrow(second, (6.0, -36.0), 70 * to_world([table], turned, "fsl")[0, :2], RIGHT, "fsl")
    draw_arrow(second, (6.0, -36.0), 70 * table[:2], WRONG, "world")
    second.set_title("the same bvec, read in two frames", fontsize=11)
    return figure


def draw_grid(axes: Axes, affine: NDArray[np.float64], step: int = 8) -> None:
    """Lines through every `step`-th voxel."""
    ends = np.array([[-64.0, 64.0]])
    for axis in (0, 1):
        for at in range(-64, 65, step):
            index = np.zeros((2, 3))
            index[:, axis] = ends
            index[:, 1 - axis] = at
            x, y, _ = apply_affine(affine, index).T
            axes.plot(x, y - 18, color=AXIS, linewidth=0.5, alpha=0.4)


# -- what goes wrong -----------------------------------------------------------------------------


def wrong_figure(anatomy: Anatomy) -> Figure:
    """Main directions of tensors around the corpus callosum, from one scan read in two frames."""
    head = anatomy.within((-80, -112, -2), (80, 84, 40))
    table = GradientTable.from_shells([1000.0], [32])
    subject = simulate_subject(head, table, seed=2, snr=30.0, deformation=1.0)
    figure = Figure(figsize=(11.5, 4.1), layout="constrained")
    with TemporaryDirectory() as folder:
        write_subject(subject, folder)
        frames: tuple[Frame, ...] = ("fsl", "voxel")
        for axes, frame, colour, word in zip(
            figure.subplots(1, 2), frames, (RIGHT, WRONG), ("right", "wrong"), strict=True
        ):
            dwi = read_dwi(
                Path(folder) / "dwi.nii.gz", mask=Path(folder) / "mask.nii.gz", frame=frame
            )
            fa, direction = fit_tensor(dwi)
            draw_fibres(axes, dwi, fa, direction, height=12.0)
            share = fibre_coherence(dwi).of(CHANGES[0])
            axes.set_title(
                f'frame="{frame}", {word}: coherence {share:.2f}', fontsize=11, color=colour
            )
    return figure


def fit_tensor(dwi: DWI) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Fractional anisotropy (V,) and main direction (V, 3) in world axes."""
    length = np.linalg.norm(dwi.q, axis=1, keepdims=True)
    table = gradient_table(dwi.b_values, bvecs=dwi.q / np.where(length > 0, length, 1))
    fit = TensorModel(table).fit(dwi.signal)
    return fit.fa, fit.evecs[..., 0]


def draw_fibres(
    axes: Axes,
    dwi: DWI,
    fa: NDArray[np.float64],
    direction: NDArray[np.float64],
    height: float,
) -> None:
    """Anisotropy of the slice nearest to a height (mm), and a stick in every voxel with a fibre."""
    centres = dwi.voxel_centres()
    nearest = np.abs(centres[:, 2] - height)
    here = nearest < nearest.min() + 0.1
    x, y = centres[here, 0], centres[here, 1]
    axes.scatter(x, y, c=fa[here], cmap="gray", vmin=0, vmax=1.2, marker="s", s=95, linewidths=0)
    fibre = here & (fa > 0.35)
    middle, half = centres[fibre, :2], 0.95 * direction[fibre, :2]
    sticks = np.stack([middle - half, middle + half], axis=1)
    axes.add_collection(LineCollection(sticks, colors=np.abs(direction[fibre]), linewidths=2.2))
    axes.set(aspect="equal", xlim=(-44, 44), ylim=(-72, -16), xticks=[], yticks=[])
    axes.set_facecolor("black")


# -- parts ---------------------------------------------------------------------------------------


def draw_head(axes: Axes, anatomy: Anatomy, height: float = 20.0) -> None:
    """An axial slice of the template, seen from above."""
    voxel = apply_affine(np.linalg.inv(anatomy.affine), [0.0, 0.0, height])
    index = round(float(voxel[2]))
    shown = 0.9 * anatomy.wm[:, :, index] + 0.5 * anatomy.gm[:, :, index]
    low = apply_affine(anatomy.affine, [-0.5, -0.5, index])
    high = apply_affine(anatomy.affine, np.array(anatomy.wm.shape) - 0.5)
    extent = (low[0], high[0], low[1], high[1])
    axes.imshow(np.abs(shown.T), cmap="gray", origin="lower", extent=extent, vmin=0, vmax=1.1)
    axes.set(xlim=(-110, 110), ylim=(-135, 100), xticks=[], yticks=[])
    axes.set_facecolor("black")
    for x, y, text in ((-104, -18, "L"), (104, -18, "R"), (0, 90, "face")):
        axes.text(x, y, text, color="white", ha="center", va="center", fontsize=10)


def draw_image_axes(
    axes: Axes, directions: NDArray[np.float64], corner: tuple[float, float]
) -> None:
    """Arrows along the first two image axes, the columns of `directions` (2, 2)."""
    for name, direction in zip("ij", directions.T, strict=True):
        draw_arrow(axes, corner, 42 * direction, AXIS, name)


def draw_arrow(
    axes: Axes,
    start: tuple[float, float],
    arrow: NDArray[np.float64],
    colour: str,
    name: str,
) -> None:
    """An arrow in the world's x and y, in mm, with its name at the tip."""
    end = np.asarray(start) + arrow
    axes.annotate(
        "", xy=tuple(end), xytext=start, arrowprops={"color": colour, "width": 2.5, "headwidth": 10}
    )
    x, y = end + (5 + 2.5 * len(name)) * arrow / np.linalg.norm(arrow)
    text = axes.text(x, y, name, color=colour, ha="center", va="center", fontsize=11, weight="bold")
    text.set_path_effects([withStroke(linewidth=2.5, foreground="black")])


if __name__ == "__main__":
    main()
