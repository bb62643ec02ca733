"""What is compared: splits of the patients, networks, tests. Nothing here computes.

The design is that of Müller et al. (arXiv:2102.06942), section 4: networks trained on growing
shares of the training scans, scored on scans of other patients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray
from torch import nn

from paper.rivals import MapConvSegmenter, MapResNetSegmenter
from tripq.filters.radial import Radial
from tripq.networks.conv import ConvSegmenter
from tripq.nn.batch_norm import Normalization
from tripq.nn.layer import Group
from tripq.scans import B_REFERENCE
from tripq.simulate import GradientTable, random_rotation
from tripq.so3.paths import Selection
from tripq.tasks.lesions.segmenter import LesionSegmenter
from tripq.training import Augmentation

#: Shares of the training scans of the paper.
FRACTIONS = (0.066, 0.132, 0.263, 0.658, 1.0)

#: Patients with a lower lesion load, in ml, are listed separately: few voxels decide their scores.
SMALL_LOAD = 5.0


# -- patients ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """Patients for training, for all choices, and for the scores, without overlap.

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


VoxelSize = float | tuple[float, float, float]

#: Signal-to-noise ratio of white matter at b = 0, where a condition does not say another.
SNR = 20.0


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
        Which pose; see `tripq.tasks.lesions.datasets.write_cohort`.
    turn_tables : bool
        Whether each subject has its table turned in a way of its own.
    seed : int
        Of the heads, the severity of their lesions and the noise.
    voxel_size : float or (float, float, float), optional
        In mm; that of the plan if not given.
    snr : float
        Signal-to-noise ratio of white matter at b = 0.
    randomised : bool
        Whether tissue, noise and artefacts of every scan are drawn by
        `tripq.simulate.Randomisation`, instead of `snr`.
    """

    name: str
    says: str
    table: GradientTable
    max_rotation: float = 10.0
    pose: int = 0
    turn_tables: bool = False
    seed: int = 0
    voxel_size: VoxelSize | None = None
    snr: float = SNR
    randomised: bool = False

    @property
    def q(self) -> NDArray[np.float64]:
        """The q-vectors of its scans, b0 first, ``|q| = sqrt(b / b_ref)``."""
        length = np.sqrt(self.table.b_values / B_REFERENCE)[:, None]
        weighted = ~self.table.b0
        return np.concatenate([np.zeros((1, 3)), (length * self.table.directions)[weighted]])

    @property
    def b_values(self) -> tuple[float, ...]:
        """Of its shells, in s/mm2."""
        return tuple(np.unique(self.table.b_values[~self.table.b0]).tolist())


_TABLE = GradientTable.from_shells([1000.0], [32])
_OTHER_WAY = random_rotation(np.random.default_rng(7))

#: What networks are trained, validated and tested on.
USUAL = Condition("usual", "usual pose", _TABLE)

#: More poses of the training patients, for a network that has to learn them.
TURNED = Condition("turned", "any pose, the same table", _TABLE, 180.0, pose=2)
TILTED = tuple(
    Condition(f"tilted-{pose}", "another usual pose", _TABLE, pose=pose) for pose in (3, 4)
)

#: More heads with the lesions of the training patients: other shapes, severities, tissue, noise.
MORE_HEADS = tuple(
    Condition(f"heads-{seed}", "other heads of the same patients", _TABLE, seed=seed)
    for seed in (1, 2, 3, 4)
)

#: The training patients with other gradient tables, for a network that can take them; none is one
#: of those that networks are tested with.
MORE_TABLES = (
    Condition("sixteen", "16 directions", GradientTable.from_shells([1000.0], [16])),
    Condition("many", "48 directions", GradientTable.from_shells([1000.0], [48])),
    Condition("both", "two shells of 24", GradientTable.from_shells([1000.0, 2000.0], [24, 24])),
)

#: The training patients with heads and tables turned at random, for a network whose maps turn with
#: them; in other poses than those of the tests.
TURNED_TABLES = tuple(
    Condition(f"turned-{pose}", "any pose and table", _TABLE, 180.0, pose=pose, turn_tables=True)
    for pose in (5, 6, 7, 8)
)

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

#: The same heads and table on other grids, and one between them to train on.
FINE = Condition("fine", "voxels of 1.5 mm", _TABLE, voxel_size=1.5)
COARSE = Condition("coarse", "voxels of 3 mm", _TABLE, voxel_size=3.0)
MIDDLE = Condition("middle", "voxels of 2 mm", _TABLE, voxel_size=2.0)
OTHER_GRIDS = (FINE, COARSE)

#: Boxes with a part of the directions, 10 of 32 at least, and no other change.
SUBSETS = Augmentation(noise=0.0, bias=0.0, b0_error=0.0, dropped=0.7, field=0.0, contrast=0.0)


# -- networks ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contender:
    """A network and how it is trained.

    Parameters
    ----------
    name : str
        Short, used in the results.
    says : str
        What the page calls it.
    build : callable
        Makes the network, with fresh weights, from the size of the voxels in mm.
    learning_rate : float
        The highest.
    steps : int
        At most; so many that on a processor no equivariant network takes longer than a reference.
    every : int
        Steps between two validations.
    settle : bool
        See `tripq.training.settle_batch_norm`.
    weight_decay : float
        Of AdamW.
    more : tuple of Condition
        In which the training patients are shown, too.
    package : str, optional
        That the network needs, of the extra ``bench``.
    scans : Condition
        In which it is trained and validated; if it is not the usual one, it is tested in it alone.
    any_grid : bool
        Whether it is tested on other grids than those of its training.
    augment : Augmentation, optional
        Of the boxes in training.
    """

    name: str
    says: str
    build: Callable[[float], nn.Module]
    learning_rate: float
    steps: int
    every: int
    settle: bool
    weight_decay: float
    more: tuple[Condition, ...] = ()
    package: str | None = None
    scans: Condition = USUAL
    any_grid: bool = False
    augment: Augmentation | None = None

    @property
    def installed(self) -> bool:
        """Whether the package of the network is there."""
        return self.package is None or find_spec(self.package) is not None


RADIUS = 1.8  # voxels: of a layer's neighbourhood, 27 of them

_Q, _P = "24x0e + 8x2e + 4x4e", "24x0e + 6x1o + 8x2e"
_Q_SMALL, _P_SMALL = "16x0e + 8x2e + 4x4e", "16x0e + 4x1o + 4x2e"

#: Irreps of the network that is small and as good; it is shipped, too.
SMALL = {"q_features": _Q_SMALL, "p_features": _P_SMALL}
LARGER = {"q_features": _Q, "p_features": _P}


def _equivariant(
    name: str,
    says: str,
    q: str,
    p: str,
    *,
    rate: float = 5e-3,
    steps: int = 1200,
    layers: int = 3,
    filter: str = "q",
    selection: Selection = "all",
    group: Group = "SO3",
    antipodal: bool = True,
    more: tuple[Condition, ...] = (),
) -> Contender:
    def build(voxel_size: float) -> nn.Module:
        return LesionSegmenter(
            p_radius=RADIUS * voxel_size,
            q_features=q,
            p_features=p,
            n_p_layers=layers,
            normalize="batch",
            filter=filter,
            selection=selection,
            group=group,
            antipodal=antipodal,
            p_radial=Radial("gaussian", 3),
            quadrature="sum",
        )

    return Contender(
        name, says, build, rate, steps, every=200, settle=True, weight_decay=1e-2, more=more
    )


def _integral(
    name: str,
    says: str,
    *,
    features: dict[str, str] = SMALL,
    radius: float = 1.5,
    normalize: Normalization = "batch",
    steps: int = 2400,
    more: tuple[Condition, ...] = TILTED,
    scans: Condition = USUAL,
    any_grid: bool = True,
    augment: Augmentation | None = None,
) -> Contender:
    """The defaults of `LesionSegmenter`; the radius is in voxels."""

    def build(voxel_size: float) -> nn.Module:
        return LesionSegmenter(p_radius=radius * voxel_size, normalize=normalize, **features)

    return Contender(
        name,
        says,
        build,
        learning_rate=5e-3,
        steps=steps,
        every=200,
        settle=normalize == "batch",
        weight_decay=1e-2,
        more=more,
        scans=scans,
        any_grid=any_grid,
        augment=augment,
    )


#: With the features that are the default of `LesionSegmenter`.
_larger = partial(_integral, features=LARGER, steps=1600)


def _convolutional(
    name: str,
    says: str,
    widths: tuple[int, ...],
    *,
    rate: float = 1e-3,
    steps: int = 6000,
    more: tuple[Condition, ...] = (),
) -> Contender:
    def build(voxel_size: float) -> nn.Module:
        return ConvSegmenter(len(_TABLE), widths=widths)

    return Contender(
        name, says, build, rate, steps, every=500, settle=False, weight_decay=1e-1, more=more
    )


def _on_maps(
    name: str,
    says: str,
    maps: str,
    widths: tuple[int, ...],
    *,
    rate: float = 1e-3,
    steps: int = 6000,
    turned: bool = False,
    more: tuple[Condition, ...] = (),
) -> Contender:
    def build(voxel_size: float) -> nn.Module:
        return MapConvSegmenter(maps, widths=widths, turned=turned)

    return Contender(
        name, says, build, rate, steps, every=500, settle=True, weight_decay=1e-1, more=more
    )


def _residual(
    name: str,
    says: str,
    maps: str,
    *,
    filters: int = 16,
    blocks: tuple[int, ...] = (1, 2, 2),
    rate: float = 1e-3,
    turned: bool = False,
    more: tuple[Condition, ...] = (),
) -> Contender:
    def build(voxel_size: float) -> nn.Module:
        return MapResNetSegmenter(maps, filters=filters, blocks=blocks, turned=turned)

    return Contender(
        name,
        says,
        build,
        rate,
        steps=6000,
        every=500,
        settle=True,
        weight_decay=1e-2,
        more=more,
        package="monai",
    )


_WIDTHS = (48, 48, 32)

#: Without order 4: with l_p of 2 at most these filters have no path to it.
_Q_TWO = "16x0e + 8x2e"


def _joint(
    name: str, says: str, *, filter: str, selection: Selection = "all", q: str = _Q_SMALL
) -> Contender:
    """A first layer that sums over the neighbours, too, and one layer less behind it."""
    return _equivariant(name, says, q, _P_SMALL, layers=2, filter=filter, selection=selection)


def _convolutions_on(maps: str, short: str) -> tuple[Contender, ...]:
    """As many candidates as of the reference, with its widths, on maps."""
    says = "48, 48, 32 channels"
    return (
        _on_maps(f"{short}-48", says, maps, _WIDTHS),
        _on_maps(f"{short}-48-fast", f"{says}, rate 3e-3", maps, _WIDTHS, rate=3e-3),
        _on_maps(
            f"{short}-48-turned",
            f"{says}, boxes turned and mirrored, more poses",
            maps,
            _WIDTHS,
            turned=True,
            more=TILTED,
        ),
        _on_maps(f"{short}-64", "64, 64, 64, 64 channels", maps, (64,) * 4, steps=4000),
    )


def _turned_harmonics(
    name: str,
    says: str,
    *,
    filters: int = 16,
    blocks: tuple[int, ...] = (1, 2, 2),
    rate: float = 1e-3,
) -> Contender:
    """With heads and tables turned at random, and boxes turned and mirrored."""
    return _residual(
        name,
        says,
        "harmonics",
        filters=filters,
        blocks=blocks,
        rate=rate,
        turned=True,
        more=TURNED_TABLES,
    )


#: From these, tuning takes the network that is best on the validation patients; as many of each.
CANDIDATES = {
    "equivariant": (
        _integral("int", "small, more poses, local norms", normalize="local"),
        _integral("int-batch", "small, more poses"),
        _larger("int-larger", "default, more poses"),
        _integral("int-wide", "small, more poses, radius of 4.4 mm", radius=1.76, steps=1200),
    ),
    "reference": (
        _convolutional("conv-48", "48, 48, 32 channels", _WIDTHS),
        _convolutional("conv-48-fast", "48, 48, 32 channels, rate 3e-3", _WIDTHS, rate=3e-3),
        _convolutional("conv-48-tilts", "48, 48, 32 channels, more poses", _WIDTHS, more=TILTED),
        _convolutional("conv-64", "64, 64, 64, 64 channels", (64,) * 4, steps=4000),
    ),
    "equivariant, sums": (
        _equivariant("eq-small", "small", _Q_SMALL, _P_SMALL),
        _equivariant("eq-small-fast", "small, rate 1e-2", _Q_SMALL, _P_SMALL, rate=1e-2),
        _equivariant("eq-small-tilts", "small, more poses", _Q_SMALL, _P_SMALL, more=TILTED),
        _equivariant("eq", "default", _Q, _P, steps=800),
    ),
    "invariant maps": _convolutions_on("invariants", "inv"),
    "tensor maps": _convolutions_on("tensor", "tensor"),
    "SegResNet on invariant maps": (
        _residual("seg-inv", "16 channels", "invariants"),
        _residual("seg-inv-fast", "16 channels, rate 3e-3", "invariants", rate=3e-3),
        _residual(
            "seg-inv-turned",
            "16 channels, boxes turned and mirrored, more poses",
            "invariants",
            turned=True,
            more=TILTED,
        ),
        _residual("seg-inv-deep", "16 channels, 4 levels", "invariants", blocks=(1, 2, 2, 4)),
    ),
    "SegResNet on harmonics": (
        _turned_harmonics("seg-harm", "16 channels"),
        _turned_harmonics("seg-harm-fast", "16 channels, rate 3e-3", rate=3e-3),
        _turned_harmonics("seg-harm-32", "32 channels", filters=32),
        _turned_harmonics("seg-harm-deep", "16 channels, 4 levels", blocks=(1, 2, 2, 4)),
    ),
}

#: Beside the networks that tuning takes, at the full training set.
VARIANTS = (
    _joint("tp", 'filter "tp", orders of the paper', filter="tp", selection="paper", q=_Q_TWO),
    _joint("tp-all", 'filter "tp", all orders', filter="tp"),
    _joint("diff", 'filter "diff"', filter="diff", q=_Q_TWO),
    _joint("p-only", 'filter "p": mean signal only', filter="p", q=_Q_TWO),
    _equivariant("tables", "more gradient tables", _Q_SMALL, _P_SMALL, more=MORE_TABLES),
    _larger("subsets", "equivariant, directions left out", any_grid=False, augment=SUBSETS),
    _larger("grids", "equivariant, trained at 2.5 and 2 mm", more=(*TILTED, MIDDLE)),
    _larger("at-fine", "equivariant, trained at 1.5 mm", more=(), scans=FINE),
    _larger("at-coarse", "equivariant, trained at 3 mm", more=(), scans=COARSE),
    _equivariant("signed", "not antipodal", _Q_SMALL + " + 4x1o", _P_SMALL, antipodal=False),
    _equivariant("mirror", "O(3)", _Q_SMALL, _P_SMALL, group="O3"),
    _convolutional("conv-turned", "reference, all poses", _WIDTHS, more=(TURNED,)),
    _convolutional("conv-12", "as few weights", (12, 12, 12)),
    Contender(
        "paper",
        "the authors' network",
        lambda voxel_size: LesionSegmenter.paper(p_radius=RADIUS * voxel_size),
        1e-2,
        steps=450,
        every=50,
        settle=True,
        weight_decay=1e-2,
    ),
)


# -- the experiment ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """The size of the experiment.

    Parameters
    ----------
    voxel_size : float
        Of the scans, mm.
    patients : tuple of str, optional
        The default is all of the sources.
    n_validation, n_test : int
        Patients to choose on and to score.
    seeds : int
        Splits.
    fractions : tuple of float
        Shares of the training patients.
    families : tuple of str
        Of `CANDIDATES`.
    candidates : int, optional
        Of each family, at most, to tune.
    variants : bool
        Whether to train `VARIANTS`, and the best of each family on `MORE_HEADS` and for longer.
    other_tables : tuple of Condition
        Tests with other gradient tables.
    other_grids : tuple of Condition
        Tests on other grids, of networks that take any.
    box_size, n_boxes : int
        Of a batch.
    largest_steps : int, optional
        Of any network, with two validations on the way, instead of its own.
    patience : int
    rise : float
        See `tripq.training.Stopping`.
    """

    voxel_size: float = 2.5
    patients: tuple[str, ...] | None = None
    n_validation: int = 3
    n_test: int = 4
    seeds: int = 3
    fractions: tuple[float, ...] = FRACTIONS
    families: tuple[str, ...] = tuple(CANDIDATES)
    candidates: int | None = None
    variants: bool = True
    other_tables: tuple[Condition, ...] = OTHER_TABLES
    other_grids: tuple[Condition, ...] = OTHER_GRIDS
    box_size: int = 20
    n_boxes: int = 2
    largest_steps: int | None = None
    patience: int = 4
    rise: float = 0.005

    def steps(self, contender: Contender, *, longer: bool = False) -> int:
        """Steps of a network at most; twice as many to see whether more would help."""
        steps = contender.steps if self.largest_steps is None else self.largest_steps
        return 2 * steps if longer else steps

    def edge(self, contender: Contender) -> float:
        """Of the voxels that a network is trained on, mm; of a cube of their volume."""
        edges = np.broadcast_to(contender.scans.voxel_size or self.voxel_size, 3)
        return float(np.cbrt(np.prod(edges)))

    def every(self, contender: Contender) -> int:
        """Steps between two validations."""
        return contender.every if self.largest_steps is None else -(-self.largest_steps // 2)


FULL = Plan()

#: All parts of the program in minutes; its scores are meaningless.
QUICK = Plan(
    voxel_size=4.0,
    patients=("01", "05", "06", "10", "11", "12"),
    n_validation=1,
    n_test=2,
    seeds=1,
    fractions=(0.263, 1.0),
    candidates=1,
    variants=False,
    other_tables=OTHER_TABLES[1:2],
    other_grids=(),
    box_size=10,
    largest_steps=40,
)
