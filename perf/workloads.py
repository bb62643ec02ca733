"""What is measured: the workloads as plain numbers, and the methods for each.

`domains` makes graphs, layers and networks of them.  Nothing here imports torch, so that the
process which only starts others stays small.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

IRREPS = "4x0e + 2x1o + 1x2e"
VOXEL = 2.0  # mm
E3NN_EDGES = 20_000

BACKENDS = ("auto", "recoupled", "fourier", "dense", "triton")

#: What a method is called in tables.
LABELS = {
    "conv3d": "Conv3d, filter given (C)",
    "dense-tf32": "dense, in TF32",
    "e3nn": f"e3nn, edge by edge (scaled from {E3NN_EDGES:,} edges)",
    "openequivariance": "OpenEquivariance",
    "conv-network": "network of Conv3d",
}
#: Peers that are no part of tripq's environment, by the names of their modules.
FOREIGN = ("openequivariance",)

GPU_ONLY = {"triton", "dense-tf32", *FOREIGN}


@dataclass(frozen=True)
class Workload:
    """What all have in common.

    Attributes
    ----------
    methods : tuple of str
        Back ends of tripq, and peers.
    gpu_only : bool
        Whether a CPU has no business with it.
    backward : bool
        Whether there is a backward pass.
    """

    name: str
    description: str
    methods: tuple[str, ...]
    gpu_only: bool = False
    backward: bool = True


@dataclass(frozen=True)
class Box(Workload):
    """One layer, IRREPS to IRREPS, on a cubic box of voxels with a shared table of directions.

    Attributes
    ----------
    side : int
        Of the box, in voxels.
    fill : float
        Share of the box in the mask: the whole, or a ball of that volume.
    shells : tuple of int
        Directions on each shell; a shell of 1 is the b0.
    lmax : int or None
        Cap on l_p and l_q.
    radius : float
        Of the neighbourhood, in voxels; 2.5 gives 81 neighbours.
    axis : str
        What it varies among the points of "scaling".
    """

    side: int = 12
    fill: float = 1.0
    shells: tuple[int, ...] = (16, 16)
    lmax: int | None = 2
    radius: float = 2.5
    axis: str = ""

    @property
    def sizes(self) -> dict[str, float]:
        """What is known before a graph is made of it."""
        reach = range(-math.floor(self.radius), math.floor(self.radius) + 1)
        lengths = [math.hypot(*offset) for offset in itertools.product(reach, repeat=3)]
        known = {
            "voxels": round(self.fill * self.side**3),
            "neighbours": sum(length < self.radius for length in lengths),
            "directions": sum(self.shells),
        }
        return known if self.lmax is None else {**known, "lmax": self.lmax}


@dataclass(frozen=True)
class Brain(Workload):
    """One layer on an ellipsoid of 100,000 voxels in a box of 96 x 112 x 96.

    Attributes
    ----------
    paper : bool
        Whether the layer is the first of `LesionSegmenter.paper`, or IRREPS to IRREPS.
    """

    paper: bool = True
    voxels: int = 100_000
    shape: tuple[int, int, int] = (96, 112, 96)
    shells: tuple[int, ...] = (1, 32, 32)
    lmax: int | None = 2
    radius: float = 2.5


@dataclass(frozen=True)
class Cloud(Workload):
    """One layer, IRREPS to IRREPS, on irregular points, each with directions of its own."""

    voxels: int = 20_000
    directions: int = 4
    neighbours: float = 27.0
    lmax: int | None = 2


@dataclass(frozen=True)
class Step(Workload):
    """A training step of the default `LesionSegmenter` on boxes."""

    boxes: int = 4
    side: int = 24
    shells: tuple[int, ...] = (1, 16, 16)


@dataclass(frozen=True)
class WholeBrain(Workload):
    """A scan segmented by the default `LesionSegmenter`."""

    voxels: int = 180_000
    voxel: float = 1.8  # mm
    shells: tuple[int, ...] = (1, 32, 32)


_WITH_PEERS = (*BACKENDS, "conv3d", "e3nn")

WORKLOADS: dict[str, Workload] = {
    workload.name: workload
    for workload in (
        Box(
            "block",
            "12^3 voxels, no mask, 32 directions on two shells, 81 neighbours, no caps on l "
            "(the authors' setting)",
            _WITH_PEERS,
            lmax=None,
        ),
        Box(
            "block2",
            "the same with l_p, l_q up to 2, as in all that follow",
            _WITH_PEERS,
        ),
        Box(
            "patch",
            "a 16^3 box, 60 % of it in the mask, 65 directions (a b0 and two shells)",
            _WITH_PEERS,
            side=16,
            fill=0.6,
            shells=(1, 32, 32),
        ),
        Box(
            "wide",
            "the same with 129 directions",
            BACKENDS,
            side=16,
            fill=0.6,
            shells=(1, 64, 64),
        ),
        Brain(
            "brain",
            "100,000 masked voxels in a box of 96 x 112 x 96, 65 directions, 81 neighbours; the "
            "first layer of `LesionSegmenter.paper` (1x0e in), forward only",
            BACKENDS,
            backward=False,
        ),
        Brain(
            "brain-inner",
            "the same with the layer of `block2`",
            (*BACKENDS, "dense-tf32", "conv3d"),
            gpu_only=True,
            paper=False,
        ),
        Cloud(
            "cloud",
            "20,000 irregular voxels, each with 4 directions of its own on one shell",
            ("auto", "recoupled", "triton", "openequivariance"),
        ),
        Step(
            "segmenter-step",
            "a training step (forward, loss, backward, Adam) of the default `LesionSegmenter` on "
            "four boxes of 24^3 voxels with 33 directions, against convolutions with as many "
            "channels as its layers have components",
            (*BACKENDS, "conv-network"),
        ),
        WholeBrain(
            "segmenter-brain",
            "a brain of 180,000 voxels of 1.8 mm with 65 directions, segmented by "
            "`tripq.tasks.lesions.segmentation.segment` with the default `LesionSegmenter`, graphs "
            "included",
            BACKENDS,
            backward=False,
        ),
    )
}

#: For tests of the command.
TINY = Box(
    "tiny",
    "4^3 voxels, 6 directions",
    ("recoupled", "conv3d", "triton"),
    side=4,
    shells=(6,),
    radius=1.5,
)


def scaling() -> tuple[Box, ...]:
    """`block2` with one size changed at a time."""
    base = replace(WORKLOADS["block2"], name="scaling", methods=BACKENDS[1:])
    assert isinstance(base, Box)
    return (
        *(replace(base, axis="voxels", side=side) for side in (8, 12, 16, 20, 24)),
        *(replace(base, axis="directions", shells=(n, n)) for n in (4, 8, 16, 32, 64)),
        *(replace(base, axis="neighbours", radius=r) for r in (1.1, 1.5, 2.1, 2.5, 3.2)),
        *(replace(base, axis="lmax", lmax=lmax) for lmax in (1, 2, 3, 4)),
    )


#: What can be asked for by name; "tiny" is not among what is measured by default.
NAMES = (*WORKLOADS, "scaling")


def find(name: str) -> tuple[Workload, ...]:
    """The workload of a name, or all points of "scaling"."""
    if name == "scaling":
        return scaling()
    return (TINY if name == TINY.name else WORKLOADS[name],)
