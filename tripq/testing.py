r"""Equivariance tests for layers and networks, your own included.

>>> from tripq import PQTensorFieldLayer
>>> assert_equivariant(PQTensorFieldLayer("1x0e", "2x0e + 1x1o", p_radius=3.0))

A network is evaluated twice: on a scan with voxels and directions rotated together, and on the
original scan with its output rotated afterwards,

.. math::
    f(D_{in}(R)\, x,\; R \cdot graph) = D_{out}(R)\, f(x,\; graph).

On irregular points both results must agree to rounding for any rotation.  A voxel grid is sampled
along its axes, so there only the rotations of the cube are exact.
"""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from torch import Tensor, nn

from tripq.domain.graph import PQGraph
from tripq.infra.e3nn import o3
from tripq.networks.blocks import graph_radius
from tripq.so3.paths import Group

Domain = Literal["points", "grid"]

#: Largest relative error in float32 and in float64.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}

_N_POINTS = 24
_N_DIRECTIONS = 6
_GRID = (4, 4, 4)
_VOXEL_MM = 2.0


@cache
def _probes() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(64, 3, generator=generator, dtype=torch.float64)


def wigner_d(l: int, rotation: NDArray[np.floating]) -> Tensor:
    """The matrix D of a rotation on features of one order, Y(R v) = D Y(v), to double precision.

    Parameters
    ----------
    l : int
        Order.
    rotation : (3, 3) array
        Of determinant 1.

    Returns
    -------
    Tensor of shape (2 l + 1, 2 l + 1), float64

    Examples
    --------
    >>> turn = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    >>> wigner_d(1, turn).round().abs()
    tensor([[0., 1., 0.],
            [1., 0., 0.], [0., 0., 1.]], dtype=torch.float64)
    """
    # e3nn's own D matrices are exact in float32 only.
    turned = _probes() @ torch.tensor(np.asarray(rotation, dtype=np.float64)).T
    before, after = (o3.spherical_harmonics(l, v, normalize=True) for v in (_probes(), turned))
    return torch.linalg.lstsq(before, after).solution.T


def representation(
    irreps: o3.Irreps | str, rotation: NDArray[np.floating], group: Group = "SO3"
) -> Tensor:
    """The matrix of a rotation, or in O(3) of a rotation with reflection, on features.

    Parameters
    ----------
    irreps : Irreps or str
        Of the features.
    rotation : (3, 3) array
        Orthogonal.
    group : {"SO3", "O3"}
        ``"SO3"`` ignores parities and has no reflections.

    Returns
    -------
    Tensor of shape (dim, dim), float64

    Raises
    ------
    ValueError
        For a reflection in SO(3).
    """
    sign = round(float(np.linalg.det(rotation)))
    if group == "SO3" and sign != 1:
        raise ValueError("SO(3) has no reflections: the determinant of the rotation must be 1")
    blocks = [
        wigner_d(ir.l, sign * rotation) * (ir.p if sign < 0 else 1)
        for mul, ir in o3.Irreps(irreps)
        for _ in range(mul)
    ]
    return torch.block_diag(*blocks)


def equivariance_error(
    network: nn.Module,
    *,
    irreps_in: o3.Irreps | str | None = None,
    irreps_out: o3.Irreps | str | None = None,
    group: Group | None = None,
    domain: Domain = "points",
    radius: float | None = None,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> float:
    """Relative difference between rotating the input and rotating the output.

    Parameters are those of `assert_equivariant`.

    Returns
    -------
    float
        Largest difference over the largest output.
    """
    irreps_in = getattr(network, "irreps_in", None) if irreps_in is None else irreps_in
    irreps_out = getattr(network, "irreps_out", None) if irreps_out is None else irreps_out
    symmetry: Group = getattr(network, "group", "SO3") if group is None else group
    reach = graph_radius(network) if radius is None else radius
    rng = np.random.default_rng(seed)
    rotation = _rotation(rng, symmetry, domain)
    q = rng.normal(size=(_N_DIRECTIONS, 3))
    q /= np.linalg.norm(q, axis=1, keepdims=True)
    q[0] = 0
    if domain == "points":
        p = rng.uniform(-reach, reach, (_N_POINTS, 3))
        graph, turned = (
            PQGraph.from_points(p @ r.T, q @ r.T, reach) for r in (np.eye(3), rotation)
        )
        order: NDArray[np.int64] = np.arange(len(p), dtype=np.int64)
    else:
        graph, turned, order = _grids(q, rotation, reach)
    generator = torch.Generator().manual_seed(seed)
    shape = (graph.n_voxels,) if getattr(network, "q_in", "graph") is None else (len(order), len(q))
    if irreps_in is None:
        x = x_turned = torch.rand(shape, generator=generator, dtype=torch.float64)
    else:
        dim = o3.Irreps(irreps_in).dim
        x = torch.randn(*shape, dim, generator=generator, dtype=torch.float64)
        x_turned = x @ representation(irreps_in, rotation, symmetry).T
    evaluated = deepcopy(network).to(dtype).eval()
    with torch.no_grad():
        out = evaluated(x.to(dtype), graph)
        found = evaluated(x_turned[order].to(dtype), turned)
    wanted = out[order]
    if irreps_out is not None:
        turn = representation(irreps_out, rotation, symmetry).to(dtype)
        wanted = wanted * turn.item() if wanted.ndim == 1 else wanted @ turn.T
    return float((found - wanted).abs().max() / out.abs().max().clamp(min=1e-30))


def assert_equivariant(
    network: nn.Module,
    *,
    irreps_in: o3.Irreps | str | None = None,
    irreps_out: o3.Irreps | str | None = None,
    group: Group | None = None,
    domain: Domain = "points",
    radius: float | None = None,
    dtype: torch.dtype = torch.float64,
    seeds: int = 3,
) -> None:
    """Check that a layer or a network commutes with rotations of voxels and directions.

    Parameters
    ----------
    network : Module
        ``network(x, graph)``; a copy of it is evaluated, in evaluation mode.
    irreps_in, irreps_out : Irreps or str, optional
        Of the features in and out, on the last axis; an output (V,) is one number for a voxel.
        Default: the attributes of the network (`irreps_in`, `irreps_out`); without them, the input
        is the signal, (V, Q), and the output is invariant, such as logits (V,).
    group : {"SO3", "O3"}, optional
        With ``"O3"`` the rotations include reflections.  Default: the attribute `group` of the
        network, else ``"SO3"``.
    domain : {"points", "grid"}
        Irregular points under any rotation, or a voxel grid under those of the cube.
    radius : float, optional
        Of the graph, in mm.  Default: the largest radius of the layers.
    dtype : torch.dtype
        Type of the evaluation; see `TOLERANCE`.
    seeds : int
        Number of random rotations, inputs and point clouds.

    Raises
    ------
    AssertionError
        If the difference exceeds the tolerance; the message gives both.

    Examples
    --------
    Convolutions over the raw directions are not equivariant:

    >>> from tripq.networks import ConvSegmenter
    >>> assert_equivariant(ConvSegmenter(6, widths=(4,)), domain="grid", radius=2.0)
    Traceback (most recent call last):
    ...
    AssertionError: ConvSegmenter is not equivariant under SO3: rotating its input ...
    """
    for seed in range(seeds):
        error = equivariance_error(
            network,
            irreps_in=irreps_in,
            irreps_out=irreps_out,
            group=group,
            domain=domain,
            radius=radius,
            dtype=dtype,
            seed=seed,
        )
        if not error <= TOLERANCE[dtype]:
            raise AssertionError(
                f"{type(network).__name__} is not equivariant under "
                f"{group or getattr(network, 'group', 'SO3')}: rotating its input and rotating "
                f"its output differ by {error:.1e} of the largest output (seed {seed}, {domain}); "
                f"the tolerance for rounding is {TOLERANCE[dtype]:.0e}"
            )


def _rotation(rng: np.random.Generator, group: Group, domain: Domain) -> NDArray[np.float64]:
    rotation = Rotation.random(random_state=rng).as_matrix()
    if domain == "grid":
        cube = Rotation.create_group("O").as_matrix()
        rotation = np.rint(cube[1 + int(rng.integers(len(cube) - 1))])
    return -rotation if group == "O3" and rng.random() < 0.5 else rotation


def _grids(
    q: NDArray[np.float64], rotation: NDArray[np.float64], radius: float
) -> tuple[PQGraph, PQGraph, NDArray[np.int64]]:
    """A grid, the rotated grid, and the voxel of the first for each voxel of the second."""
    affine = np.diag([_VOXEL_MM, _VOXEL_MM, _VOXEL_MM, 1.0])
    mask = np.ones(_GRID, bool)
    mask[0, 0] = mask[1, :, 3] = False  # a mask without rotational symmetry
    turned = np.argwhere(mask) @ rotation.T.astype(int)
    turned -= turned.min(axis=0)
    moved = np.zeros(turned.max(axis=0) + 1, bool)
    moved[tuple(turned.T)] = True
    order = np.lexsort(turned.T[::-1]).astype(np.int64)  # of np.argwhere(moved)
    return (
        PQGraph.from_grid(mask, affine, q, radius),
        PQGraph.from_grid(moved, affine, q @ rotation.T, radius),
        order,
    )
