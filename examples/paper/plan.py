"""What is compared: splits of the patients, networks, tests. Nothing here computes.

The design is that of Müller et al. (arXiv:2102.06942), section 4: networks trained on growing
shares of the training scans, scored on scans of other patients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from tripq.models import ConvSegmenter, LesionSegmenter
from tripq.simulate import GradientTable, random_rotation

#: Shares of the training scans of the paper.
FRACTIONS = (0.066, 0.132, 0.263, 0.658, 1.0)

#: Lesion load in ml below which a patient's scores stand apart: a few voxels decide about them.
SMALL_LOAD = 5.0


# -- patients ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """Patients to train on, to choose everything on, and to score; they never meet.

    Parameters
    ----------
    training : tuple of str
        In the order in which a smaller share takes them.
    validation, test : tuple of str
        The others.
    """

    training: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]

    def share(self, fraction: float) -> tuple[str, ...]:
        """The first patients of the training set, at least one; rounded to whole patients."""
        return self.training[: max(1, round(fraction * len(self.training)))]


def split_patients(
    patients: Sequence[str], n_validation: int, n_test: int, seeds: int
) -> tuple[Split, ...]:
    """One split for each seed.

    The validation patients are the same in all, as the networks are tuned on them: so they are
    never tested. No two splits test the same patient, as long as there are enough.

    Examples
    --------
    >>> splits = split_patients([f"{i:02}" for i in range(1, 23)], 3, 4, seeds=3)
    >>> [len(split.training) for split in splits]
    [15, 15, 15]
    >>> len({patient for split in splits for patient in split.test})
    12
    """
    order = [patients[i] for i in np.random.default_rng(0).permutation(len(patients))]
    validation, others = order[:n_validation], order[n_validation:]
    splits = []
    for seed in range(seeds):
        turned = np.roll(others, -n_test * seed).tolist()
        splits.append(Split(tuple(turned[n_test:]), tuple(validation), tuple(turned[:n_test])))
    return tuple(splits)


# -- scans ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Condition:
    """How the heads are scanned.

    Parameters
    ----------
    name : str
        Of the folder, too.
    says : str
        What the page calls it.
    table : GradientTable
        World axes.
    max_rotation : float
        Largest angle by which heads are turned, degrees.
    pose : int
        Which pose; see `tripq.datasets.write_cohort`.
    turn_tables : bool
        Whether each subject has its table turned in a way of its own.
    """

    name: str
    says: str
    table: GradientTable
    max_rotation: float = 10.0
    pose: int = 0
    turn_tables: bool = False


_TABLE = GradientTable.from_shells([1000.0], [32])
_OTHER_WAY = random_rotation(np.random.default_rng(7))

#: What networks are trained, validated and tested on.
USUAL = Condition("usual", "usual pose", _TABLE)

#: More poses of the training patients, for a network that has to learn them.
TURNED = Condition("turned", "any pose, the same table", _TABLE, 180.0, pose=2)

#: What networks are tested on besides.
ROTATED = Condition(
    "rotated", "heads and tables turned at random", _TABLE, 180.0, pose=1, turn_tables=True
)
OTHER_TABLES = (
    Condition(
        "directions",
        "32 other directions",
        _TABLE.rotated(random_rotation(np.random.default_rng(7))),
    ),
    Condition("fewer", "12 directions", GradientTable.from_shells([1000.0], [12])),
    Condition("shells", "two shells", GradientTable.from_shells([1000.0, 2000.0], [32, 32])),
)


# -- networks ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contender:
    """A network and how it is trained.

    Parameters
    ----------
    name : str
        Short, as it stands in the results.
    says : str
        What the page calls it.
    build : callable
        Makes the network, with fresh weights.
    learning_rate : float
        The highest.
    steps : int
        At most.
    every : int
        Steps between two validations.
    settle : bool
        See `tripq.training.settle_batch_norm`.
    poses : bool
        Whether the training patients are shown in other poses, too.
    """

    name: str
    says: str
    build: Callable[[], nn.Module]
    learning_rate: float
    steps: int
    every: int
    settle: bool
    poses: bool = False


RADIUS = 3.6  # mm: 27 voxels of 2 mm


def _equivariant(
    name: str,
    says: str,
    q: str,
    p: str,
    *,
    rate: float = 1e-2,
    layers: int = 2,
) -> Contender:
    def build() -> nn.Module:
        return LesionSegmenter(p_radius=RADIUS, q_features=q, p_features=p, n_p_layers=layers)

    return Contender(name, says, build, rate, steps=1200, every=100, settle=True)


def _convolutional(
    name: str, says: str, widths: tuple[int, ...], *, rate: float = 3e-3, poses: bool = False
) -> Contender:
    def build() -> nn.Module:
        return ConvSegmenter(len(_TABLE), widths=widths)

    return Contender(name, says, build, rate, 4000, every=250, settle=False, poses=poses)


_Q, _P = "24x0e + 8x2e + 4x4e", "24x0e + 6x1o + 8x2e"
_Q_SMALL, _P_SMALL = "16x0e + 6x2e + 2x4e", "16x0e + 4x1o + 4x2e"

#: From these, tuning takes the network that is best on the validation patients.
CANDIDATES = {
    "equivariant": (
        _equivariant("eq", "default", _Q, _P),
        _equivariant("eq-slow", "default, half the learning rate", _Q, _P, rate=5e-3),
        _equivariant("eq-small", "smaller", _Q_SMALL, _P_SMALL),
        _equivariant("eq-small-deep", "smaller, a layer more", _Q_SMALL, _P_SMALL, layers=3),
        _equivariant("eq-024", "no vectors", _Q_SMALL, "24x0e + 6x2e"),
    ),
    "reference": (
        _convolutional("conv-24", "24, 24, 24 channels", (24, 24, 24)),
        _convolutional("conv-48", "48, 48, 32 channels", (48, 48, 32)),
        _convolutional(
            "conv-48-slow", "48, 48, 32 channels, a third of the rate", (48, 48, 32), rate=1e-3
        ),
        _convolutional("conv-64", "64, 64, 64, 64 channels", (64, 64, 64, 64), rate=1e-3),
        _convolutional("conv-48-poses", "48, 48, 32 channels, all poses", (48, 48, 32), poses=True),
    ),
}
