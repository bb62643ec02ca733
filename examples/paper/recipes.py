"""Networks that are trained on real heads, and how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import typer
from torch import nn

from paper.plan import SMALL
from paper.rivals import MapConvSegmenter, MapResNetSegmenter
from tripq.tasks.lesions.segmenter import LesionSegmenter

#: Radius of the neighbourhoods in mm.  The map of a network that was trained with the default of
#: 3 mm depends more on the grid (perf/sampling.py), and its score on the validation patients is
#: lower.
RADIUS = 4.4


@dataclass(frozen=True)
class Stage:
    """Length and rate of a training.

    Parameters
    ----------
    steps : int
        Steps of the optimiser.
    learning_rate : float
        The highest; it falls to 0.
    every : int, optional
        Steps between two validations, at which the training can go on after an interruption.
    """

    steps: int
    learning_rate: float
    every: int | None = None


@dataclass(frozen=True)
class Recipe:
    """A network and both of its trainings.

    Parameters
    ----------
    name : str
        Of its folder and its results.
    says : str
        What the page calls it.
    build : callable
        Makes the network, with fresh weights.
    base : Stage
        On simulated scans.
    with_heads : Stage
        With real heads.
    voxel_size : float, optional
        Edge in mm of the voxels to which all scans are resampled; by default they are used as they
        are.
    weight_decay : float
        Of AdamW.
    """

    name: str
    says: str
    build: Callable[[], nn.Module]
    base: Stage
    with_heads: Stage
    voxel_size: float | None = None
    weight_decay: float = 1e-2


EQUIVARIANT = Recipe(
    "equivariant",
    "equivariant",
    lambda: LesionSegmenter(p_radius=RADIUS, normalize="local", b0_contrast=True, **SMALL),
    Stage(3600, 5e-3, every=1200),
    Stage(1500, 5e-3),
)
"""The network that comes with tripq."""

_rival = partial(
    Recipe,
    base=Stage(6000, 1e-3, every=2000),
    with_heads=Stage(1000, 1e-3),
    voxel_size=2.0,
)

RIVALS = (
    _rival(
        "tensor",
        "CNN on tensor maps and b0",
        lambda: MapConvSegmenter("tensor and b0", b_values=(), turned=True),
        weight_decay=1e-1,
    ),
    _rival(
        "segresnet",
        "SegResNet on tensor maps and b0",
        lambda: MapResNetSegmenter("tensor and b0", b_values=(), turned=True),
    ),
)
"""Networks on maps that a tensor fit of any gradient table gives, on voxels of one size."""

RECIPES = {recipe.name: recipe for recipe in (EQUIVARIANT, *RIVALS)}


def _known(name: str) -> str:
    """The name of a recipe; an error of the option otherwise."""
    if name not in RECIPES:
        raise typer.BadParameter(f"no network {name}; there are {', '.join(RECIPES)}.")
    return name


OfRecipe = Annotated[str, typer.Option(help=f"The network: {', '.join(RECIPES)}.", callback=_known)]
