"""Random inputs for the tests, and the measures and laws that several of them share.

A *domain* is what a graph is made of, before it is one: it can be moved by a rotation and a
translation, and knows the shape of the features on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import permutations, product
from typing import Literal, TypeAlias

import numpy as np
import torch
from e3nn import o3
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch._C._profiler import _EventType, _ProfilerEvent
from torch.profiler import ProfilerActivity, profile

from tripq import PQGraph, PQTensorFieldLayer, Radial
from tripq.backends.plan import Backend
from tripq.domain.quadrature import Quadrature
from tripq.nn.layer import OnGraph
from tripq.so3.paths import Group
from tripq.testing import representation

Array: TypeAlias = NDArray[np.float64]
Form = Literal["grid", "points", "nodes"]

FORMS: tuple[Form, ...] = ("grid", "points", "nodes")
FILTERS = ("tp", "diff", "p", "q", "tp + diff + p + q")
GROUPS: tuple[Group, ...] = ("SO3", "O3")
BACKENDS: tuple[Backend, ...] = ("edges", "recoupled", "fourier", "dense", "triton")
#: Where input and output of a layer live, (q_in, q_out): directions and directions, directions and
#: a map, a map and directions.
ENDS: tuple[tuple[OnGraph | None, OnGraph | None], ...] = (
    ("graph", "graph"),
    ("graph", None),
    (None, "graph"),
)
RADIUS = 3.0  # mm; of the neighbourhoods of all random layers
Q_MAX = 2.0

#: Largest relative errors of a rotated evaluation, and of one back end against another.
EQUIVARIANCE = {torch.float32: 1e-5, torch.float64: 1e-11}
AGREEMENT = {torch.float32: 1e-5, torch.float64: 1e-12}

#: Features and weights in the tests are of order 1: results below this are what terms leave that
#: cancel by symmetry (one voxel, say, has no odd order in an antipodal layer), and all rounding.
CANCELLED = 1e-2

#: The rotations of the cube, and with them its reflections.
CUBE = {
    "O3": [
        np.eye(3)[list(axes)] * np.array(signs)
        for axes in permutations(range(3))
        for signs in product((1.0, -1.0), repeat=3)
    ]
}
CUBE["SO3"] = [matrix for matrix in CUBE["O3"] if np.linalg.det(matrix) > 0]


def backends_for(form: Form, filter: str = "tp") -> list[Backend]:
    """The back ends that can evaluate a filter on a form of domain."""
    able = {"edges", "recoupled"}
    if form == "grid":
        able.add("dense")
    if form == "grid" and "diff" not in filter:
        able.add("fourier")
    if form == "nodes" or "diff" not in filter:
        able.add("triton")
    return [backend for backend in BACKENDS if backend in able]


def combinations(filter: str) -> list[tuple[str, Form, Backend]]:
    """A filter on every form of domain by every back end that can evaluate it."""
    return [(filter, form, b) for form in FORMS for b in backends_for(form, filter)]


def relative_error(a: Tensor, b: Tensor) -> float:
    """Largest difference, in units of the largest value of `b` or of `CANCELLED`."""
    assert a.shape == b.shape, f"{tuple(a.shape)} is not {tuple(b.shape)}"
    if a.numel() == 0:
        return 0.0
    return (a - b).abs().max().item() / max(b.abs().max().item(), CANCELLED)


def largest_allocation(run: Callable[[], object]) -> int:
    """Bytes of the largest array that is allocated on the CPU, inside operators too.

    Left out is what a convolution of torch allocates for itself, which no budget splits.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        run()
    # Not `found.events()`, which takes a second for every ten thousand of them.
    return _largest(found.profiler.kineto_results.experimental_event_tree())


def _largest(events: list[_ProfilerEvent]) -> int:
    return max((_bytes(event) for event in events if "conv" not in event.name), default=0)


def _bytes(event: _ProfilerEvent) -> int:
    own = event.typed[1].alloc_size if event.tag == _EventType.Allocation else 0
    return max(own, _largest(event.children))


# -- domains -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Grid:
    """Voxels of a mask, all with the same table."""

    mask: NDArray[np.bool_]
    affine: Array
    q: Array
    q_out: Array | None = None
    q_edges: Literal["full", "shell"] = "full"

    @property
    def n_voxels(self) -> int:
        return int(self.mask.sum())

    @property
    def shape(self) -> tuple[int, ...]:
        return self.n_voxels, len(self.q)

    def graph(self, radius: float = RADIUS) -> PQGraph:
        return PQGraph.from_grid(
            self.mask, self.affine, self.q, radius, q_edges=self.q_edges, q_out=self.q_out
        )

    def centres(self) -> Array:
        return np.argwhere(self.mask) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def moved(self, rotation: Array, shift: Array) -> Grid:
        motion = np.eye(4)
        motion[:3, :3], motion[:3, 3] = rotation, shift
        return replace(
            self,
            affine=motion @ self.affine,
            q=self.q @ rotation.T,
            q_out=None if self.q_out is None else self.q_out @ rotation.T,
        )


@dataclass(frozen=True)
class Points:
    """Any voxel centres, all with the same table."""

    p: Array
    q: Array
    q_out: Array | None = None
    q_edges: Literal["full", "shell"] = "full"

    @property
    def n_voxels(self) -> int:
        return len(self.p)

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.p), len(self.q)

    def graph(self, radius: float = RADIUS) -> PQGraph:
        return PQGraph.from_points(self.p, self.q, radius, q_edges=self.q_edges, q_out=self.q_out)

    def centres(self) -> Array:
        return self.p

    def moved(self, rotation: Array, shift: Array) -> Points:
        return replace(
            self,
            p=self.p @ rotation.T + shift,
            q=self.q @ rotation.T,
            q_out=None if self.q_out is None else self.q_out @ rotation.T,
        )


@dataclass(frozen=True)
class Nodes:
    """Voxel centres, each with a table of its own: as many q-vectors as `counts` says."""

    p: Array
    q: Array
    counts: tuple[int, ...]
    q_out: Array | None = None  # for every voxel the same
    q_edges: Literal["full", "shell"] = "full"

    @property
    def n_voxels(self) -> int:
        return len(self.p)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.q),)

    def graph(self, radius: float = RADIUS) -> PQGraph:
        out = None if self.q_out is None else np.tile(self.q_out, (len(self.p), 1))
        return PQGraph.from_nodes(
            np.repeat(self.p, self.counts, axis=0),
            self.q,
            radius,
            q_edges=self.q_edges,
            p_out=None if self.q_out is None else np.repeat(self.p, len(self.q_out), axis=0),
            q_out=out,
        )

    def centres(self) -> Array:
        return self.p

    def moved(self, rotation: Array, shift: Array) -> Nodes:
        return replace(
            self,
            p=self.p @ rotation.T + shift,
            q=self.q @ rotation.T,
            q_out=None if self.q_out is None else self.q_out @ rotation.T,
        )


Domain: TypeAlias = Grid | Points | Nodes


def features(
    layer: PQTensorFieldLayer,
    domain: Domain,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Tensor:
    """Random input features of a layer on a domain."""
    shape = (domain.n_voxels,) if layer.q_in is None else domain.shape
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, layer.irreps_in.dim, generator=generator, dtype=torch.float64)
    return x.to(dtype)


# -- the laws ------------------------------------------------------------------------------------


def equivariance_error(
    layer: PQTensorFieldLayer, x: Tensor, domain: Domain, rotation: Array, shift: Array
) -> float:
    """Relative difference between turning the input and turning the output."""
    d_in = representation(layer.irreps_in, rotation, layer.group).to(x)
    d_out = representation(layer.irreps_out, rotation, layer.group).to(x)
    with torch.no_grad():
        turned_input = layer(x @ d_in.T, domain.moved(rotation, shift).graph())
        turned_output = layer(x, domain.graph()) @ d_out.T
    return relative_error(turned_input, turned_output)


def assert_equivariant(
    layer: PQTensorFieldLayer, x: Tensor, domain: Domain, rotation: Array, shift: Array
) -> None:
    """A layer commutes with a motion of the world, to rounding."""
    error = equivariance_error(layer, x, domain, rotation, shift)
    limit = EQUIVARIANCE[x.dtype]
    assert error < limit, f"{layer} with {layer.backend!r}: {error:.1e} is not below {limit:.0e}"


# -- random inputs -------------------------------------------------------------------------------

seeds = st.integers(0, 2**32 - 1)


def rotation_of(seed: int) -> Array:
    """A random rotation."""
    return Rotation.random(random_state=seed).as_matrix()


@st.composite
def rotations(draw: st.DrawFn, group: Group = "SO3") -> Array:
    """Rotations; for O(3), half of them with a reflection."""
    sign = draw(st.sampled_from((1, -1))) if group == "O3" else 1
    return sign * rotation_of(draw(seeds))


@st.composite
def shifts(draw: st.DrawFn) -> Array:
    """Translations of up to 10 cm."""
    return np.random.default_rng(draw(seeds)).uniform(-100, 100, 3)


@st.composite
def irreps(draw: st.DrawFn, lmax: int = 2) -> o3.Irreps:
    """One or two runs of channels, in any order of l and parity."""
    runs = st.tuples(st.integers(1, 2), st.tuples(st.integers(0, lmax), st.sampled_from((1, -1))))
    return o3.Irreps(draw(st.lists(runs, min_size=1, max_size=2)))


def table_of(seed: int, n: int) -> Array:
    """Random q-vectors: q = 0 first, then directions on two shells."""
    rng = np.random.default_rng(seed)
    q = rng.normal(size=(n, 3))
    q *= rng.choice([1.0, 1.7], size=(n, 1)) / np.linalg.norm(q, axis=1, keepdims=True)
    q[:1] = 0
    return q


@st.composite
def tables(draw: st.DrawFn, max_size: int = 4) -> Array:
    """Gradient tables, with or without a q = 0."""
    n, skip = draw(st.integers(1, max_size)), draw(st.integers(0, 1))
    return table_of(draw(seeds), n + skip)[skip:]


def affine_of(linear: Array, origin: tuple[float, float, float] = (0, 0, 0)) -> Array:
    """An affine from its linear part and the centre of the first voxel."""
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = linear, origin
    return affine


@st.composite
def affines(draw: st.DrawFn) -> Array:
    """Oblique and anisotropic affines of either handedness, some of them sheared."""
    rng = np.random.default_rng(draw(seeds))
    shear = np.eye(3)
    shear[0, 1] = draw(st.sampled_from((0.0, 0.2)))
    sizes = rng.uniform(1.2, 3.0, 3) * rng.choice([1, -1], 3)
    linear = rotation_of(draw(seeds)) @ shear @ np.diag(sizes)
    return affine_of(linear, tuple(rng.uniform(-100, 100, 3)))


@st.composite
def masks(draw: st.DrawFn, longest: int = 3) -> NDArray[np.bool_]:
    """Masks of small volumes, from empty to full."""
    shape = draw(st.tuples(*[st.integers(1, longest)] * 3))
    share = draw(st.sampled_from((0.0, 0.3, 0.7, 1.0)))
    return np.random.default_rng(draw(seeds)).random(shape) < share


@st.composite
def domains(draw: st.DrawFn, form: Form) -> Domain:
    """Domains of a form, with shells joined or not and any output sampling."""
    q_out = draw(st.none() | tables(3))
    q_edges = draw(st.sampled_from(("full", "shell")))
    if form == "grid":
        return Grid(draw(masks()), draw(affines()), draw(tables()), q_out, q_edges)
    rng = np.random.default_rng(draw(seeds))
    p = rng.uniform(-2.5, 2.5, (draw(st.integers(1, 5)), 3))
    if form == "points":
        return Points(p, draw(tables()), q_out, q_edges)
    counts = tuple(draw(st.lists(st.integers(1, 3), min_size=len(p), max_size=len(p))))
    q = np.concatenate([table_of(draw(seeds), n + 1)[1:] for n in counts])
    return Nodes(p, q, counts, q_out, q_edges)


@st.composite
def radials(draw: st.DrawFn, *, fixed: bool = False) -> Radial:
    """Radial functions of every kind; without perceptrons, which take e3nn long to compile."""
    return Radial(
        draw(st.sampled_from(("gaussian", "cosine", "bessel", "smooth_finite"))),
        draw(st.integers(1, 2)),
        learnable=not fixed and draw(st.booleans()),
    )


def randomised(layer: PQTensorFieldLayer, seed: int) -> PQTensorFieldLayer:
    """The layer in float64, with every parameter moved away from its special first value."""
    generator = torch.Generator().manual_seed(seed)
    layer = layer.to(torch.float64)
    with torch.no_grad():
        for parameter in layer.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter += 0.1 * noise
    return layer


@st.composite
def layers(
    draw: st.DrawFn,
    *,
    domain: Domain | None = None,
    filter: str | None = None,
    group: Group | None = None,
    antipodal: bool | None = None,
    quadrature: Quadrature | None = None,
    ends: Sequence[tuple[OnGraph | None, OnGraph | None]] = ENDS[:2],
) -> PQTensorFieldLayer:
    """Layers with any options; those given are kept, and a `domain` is one that they must fit.

    With ``ends=ENDS`` some expand maps to directions.  Integrals have fixed radial functions of
    distance, as the back end ``"triton"`` needs them.
    """

    def drawn(value, choices):  # type: ignore[no-untyped-def]
        return draw(st.sampled_from(choices)) if value is None else value

    torch.manual_seed(draw(seeds))
    group = drawn(group, GROUPS)
    filter = drawn(filter, FILTERS)
    # The definition of an integral of a "diff" filter evaluates each edge at every point of a
    # voxel: tests/laws/test_sampling.py does that on a small graph.
    quadrature = drawn(quadrature, ("sum",) if "diff" in filter else ("integral", "sum"))
    irreps_out = draw(irreps())
    q_in, q_out = draw(st.sampled_from(ends))
    same_nodes = q_in == q_out and (domain is None or domain.q_out is None)
    layer = PQTensorFieldLayer(
        draw(irreps()),
        irreps_out,
        RADIUS,
        q_max=Q_MAX,
        filter=filter,
        selection=draw(st.sampled_from(("paper", "tp1", "all"))),
        lmax_p=draw(st.integers(0, 2)),
        lmax_q=draw(st.integers(0, 2)),
        lmax_filter=draw(st.sampled_from((None, 1, 2))),
        p_radial=draw(radials(fixed=quadrature == "integral")),
        q_radial=draw(radials()),
        quadrature=quadrature,
        q_directions=draw(st.sampled_from(("vectors", "unit"))),
        group=group,
        antipodal=drawn(antipodal, (False, True)),
        bias=draw(st.booleans()) and _has_scalars(irreps_out, group),
        self_interaction=draw(st.booleans()) and same_nodes,
        q_in=q_in,
        q_out=q_out,
    )
    return randomised(layer, draw(seeds))


def _has_scalars(irreps_out: o3.Irreps, group: Group) -> bool:
    return any(ir.l == 0 and (group == "SO3" or ir.p == 1) for _, ir in irreps_out)
