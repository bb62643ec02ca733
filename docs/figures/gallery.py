"""Pictures of docs/gallery.md that nothing else draws: ``python docs/figures/gallery.py``."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure

from tripq.networks.blocks import predict_blocks
from tripq.scans import DWI
from tripq.simulate import Anatomy, GradientTable, default_anatomy
from tripq.tasks.lesions.simulate import simulate_subject
from tripq.tasks.signal.network import SignalPredictor

IMAGES = Path(__file__).parents[1] / "images"


def draw(dwi: DWI, pictures: dict[str, np.ndarray]) -> Figure:
    """One slice through the middle of each picture, whose values are those of the voxels."""
    figure = Figure(figsize=(2.6 * len(pictures), 3.2), layout="constrained")
    for axes, (title, values) in zip(
        np.atleast_1d(figure.subplots(1, len(pictures))), pictures.items(), strict=True
    ):
        volume = dwi.volume(np.asarray(values, dtype=float))
        axes.imshow(volume[:, :, volume.shape[2] // 2].T, cmap="gray", origin="lower")
        axes.set_title(title, fontsize=9)
        axes.set_axis_off()
    return figure


def simulate_figure(anatomy: Anatomy) -> Figure:
    """B0, two directions and the lesions of a simulated head."""
    subject = simulate_subject(anatomy, GradientTable.from_shells([1000.0], [12]), seed=3)
    dwi = subject.dwi
    pictures = {
        "b0": dwi.b0,
        "direction 1 / b0": dwi.signal[:, 1],
        "direction 2 / b0": dwi.signal[:, 2],
        "known lesions": subject.coverage,
    }
    return draw(dwi, pictures)


def signal_figure(anatomy: Anatomy) -> Figure:
    """A direction that was not given: measured and predicted by spherical harmonics."""
    torch.manual_seed(0)
    table = GradientTable.from_shells([1000.0], [13])
    dwi = simulate_subject(anatomy, table, seed=3).dwi
    given = dwi.with_samples(list(range(13)))
    network = SignalPredictor(p_radius=6.0, p_features="4x0e + 2x2e").eval()
    predicted = predict_blocks(network, given, q_out=np.stack([np.zeros(3), dwi.q[13]]))[:, 1]
    measured = dwi.signal[:, 13]
    pictures = {
        "b0": dwi.b0,
        "measured / b0": measured,
        "predicted / b0": predicted,
        "difference": predicted - measured,
    }
    return draw(dwi, pictures)


if __name__ == "__main__":
    mpl.rcParams["font.family"] = "DejaVu Sans"
    head = default_anatomy(4.0)
    for name, figure in (("simulate", simulate_figure(head)), ("signal", signal_figure(head))):
        figure.savefig(IMAGES / f"gallery-{name}.png", dpi=90)
