"""Pictures of docs/gallery.md that nothing else draws: ``python docs/figures/gallery.py``."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from tripq.networks import load_network
from tripq.networks.apply import apply_model, load_model
from tripq.networks.blocks import predict_blocks
from tripq.scans import DWI
from tripq.simulate import Anatomy, GradientTable, default_anatomy, simulate_scan
from tripq.tasks.fibres.command import FibreCommands
from tripq.tasks.fibres.peaks import find_peaks
from tripq.tasks.fibres.simulate import simulate_fibres
from tripq.tasks.lesions.simulate import simulate_subject
from tripq.tasks.signal.command import SignalCommands
from tripq.tasks.tissue.command import TissueCommands
from tripq.tasks.tissue.simulated import label_scan

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
    """A direction that was not given: measured, and predicted by the included network."""
    table = GradientTable.from_shells([1000.0], [13])
    dwi = simulate_subject(anatomy, table, seed=3).dwi
    given = dwi.with_samples(list(range(13)))
    network = load_network(SignalCommands().included_weights()).eval()
    predicted = predict_blocks(network, given, q_out=np.stack([np.zeros(3), dwi.q[13]]))[:, 1]
    measured = dwi.signal[:, 13]
    pictures = {
        "b0": dwi.b0,
        "measured / b0": measured,
        "predicted / b0": predicted,
        "difference": predicted - measured,
    }
    return draw(dwi, pictures)


def tissue_figure(anatomy: Anatomy) -> Figure:
    """The classes of a head, known and found by the included network."""
    table = GradientTable.from_shells([1000.0], [20])
    head = label_scan(simulate_scan(anatomy, table, 3, snr=20.0), "sub-03")
    commands = TissueCommands()
    found = apply_model(
        load_model(commands.included_weights()), head.dwi, predict=commands.predict
    ).output
    pictures = {
        "b0": head.dwi.b0,
        "known classes": 1 + head.labels,
        "found classes": 1 + found.argmax(axis=1),
        "probability of white matter": found[:, 0],
    }
    return draw(head.dwi, pictures)


def fibres_figure(anatomy: Anatomy) -> Figure:
    """The largest peak of every voxel of white matter, known and found by the included network."""
    head = simulate_fibres(anatomy, GradientTable.from_shells([1000.0], [20]), seed=2, snr=20.0)
    commands = FibreCommands()
    found = apply_model(
        load_model(commands.included_weights()), head.dwi, predict=commands.predict
    ).output
    dwi, white = head.dwi, head.peaks[:, 0].any(axis=1)
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    middle = dwi.mask.shape[2] // 2
    for axes, (title, peaks) in zip(
        figure.subplots(1, 2),
        {"known": head.peaks, "found": find_peaks(found)}.items(),
        strict=True,
    ):
        axes.imshow(dwi.volume(dwi.b0)[:, :, middle].T, cmap="gray", origin="lower")
        along = dwi.volume(np.where(white[:, None], peaks[:, 0], 0))[:, :, middle]
        x, y = np.nonzero(along.any(axis=-1))
        stick = along[x, y] / np.linalg.norm(along[x, y], axis=1, keepdims=True)
        how = {"pivot": "mid", "headaxislength": 0, "headlength": 0, "headwidth": 1}
        axes.quiver(
            x,
            y,
            *stick[:, :2].T,
            color=np.abs(stick),
            angles="xy",
            scale=1.1,
            units="xy",
            scale_units="xy",
            width=0.2,
            **how,
        )
        axes.set_title(f"largest peak, {title}", fontsize=9)
        axes.set_axis_off()
    return figure


FIGURES = {
    "simulate": simulate_figure,
    "signal": signal_figure,
    "tissue": tissue_figure,
    "fibres": fibres_figure,
}

if __name__ == "__main__":
    mpl.rcParams["font.family"] = "DejaVu Sans"
    head = default_anatomy(4.0)
    for name in sys.argv[1:] or FIGURES:
        FIGURES[name](head).savefig(IMAGES / f"gallery-{name}.png", dpi=90)
