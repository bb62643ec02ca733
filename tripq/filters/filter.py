"""One filter: its paths, its radial functions and its weights."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from tripq.domain.nodes import NodeSpace
from tripq.domain.qspace import QSpace
from tripq.domain.quadrature import Quadrature, VoxelRule
from tripq.domain.voxels import PEdges, grid_edges, inside
from tripq.filters.radial import ConstantFunction, RadialFunctions
from tripq.filters.sparse import SparseMatrix
from tripq.infra.chunks import chunks
from tripq.infra.kept import keep, kept, kept_with_owner
from tripq.kernels.embeddings import edge_harmonics
from tripq.kernels.launch import accumulation_dtype, needs_twin, runs_in_triton
from tripq.so3.harmonics import mean_over_signs, spherical_harmonics, unit_vectors
from tripq.so3.paths import Channels, FilterKind, Path
from tripq.so3.recoupling import Recoupling, clebsch_gordan

#: Voxel size (mm) of an ordinary diffusion scan, for the scale of the first weights only.
TYPICAL_VOXEL_MM = 2.0

#: A radial function of |q| whose sum over the shells is less is not scaled up further: it has next
#: to no value on any of them.
LEAST_SUM = 0.1


class PQFilter(nn.Module):
    r"""A learned filter of one kind between two feature maps.

    For each path, a sum over radial functions of

    .. math::
        W\; \varphi_1(|p|)\, \varphi_2(|q_{out}|)\, \varphi_3(|q_{in}|)\;
        C(l_{out}; l_f\, l_{in})\, C(l_f; l_p\, l_q)\, Y_{l_p}\, Y_{l_q}.

    This class holds what is learned and evaluates embeddings and `kernel`; a back end evaluates
    the sum over edges.

    Parameters
    ----------
    kind : {"tp", "diff", "p", "q"}
        Which offsets the harmonics see.
    paths : tuple of Path
        Those of this kind.
    channels_in, channels_out : tuple of Channels
        The feature maps.
    phi_p, phi_q_out, phi_q_in : RadialFunctions or ConstantFunction
        Radial functions of |p_out - p_in|, |q_out| and |q_in|.
    unit_directions : bool
        Whether q-offsets are differences of unit vectors.
    antipodal : bool
        Whether the filter is averaged over the signs of the q-vectors.
    quadrature : {"integral", "sum"}
        For which of them the first weights are scaled.
    """

    def __init__(
        self,
        kind: FilterKind,
        paths: tuple[Path, ...],
        channels_in: tuple[Channels, ...],
        channels_out: tuple[Channels, ...],
        phi_p: RadialFunctions | ConstantFunction,
        phi_q_out: RadialFunctions | ConstantFunction,
        phi_q_in: RadialFunctions | ConstantFunction,
        *,
        unit_directions: bool,
        antipodal: bool,
        quadrature: Quadrature,
    ) -> None:
        super().__init__()
        self.kind = kind
        self.paths = paths
        self.channels_in = channels_in
        self.channels_out = channels_out
        self.phi_p = phi_p
        self.phi_q_out = phi_q_out
        self.phi_q_in = phi_q_in
        self.unit_directions = unit_directions
        self.antipodal = antipodal
        self.quadrature = quadrature
        self.radial = (phi_p.number, phi_q_out.number, phi_q_in.number)
        self.weight = nn.Parameter(torch.empty(sum(self._numel(path) for path in paths)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights so that features of size 1 give features of about size 1.

        Normal deviates, divided for each output order by the root of the number of terms it sums:
        input channels, radial functions and, each counted with the square of its radial function
        and quadrature weight, the voxels that a grid of `TYPICAL_VOXEL_MM` has within the radius.
        On the meta device there are no values to draw.
        """
        if self.weight.is_meta:
            return
        terms = dict.fromkeys(((c.l, c.parity) for c in self.channels_out), 0.0)
        neighbours = self._neighbours()
        for path in self.paths:
            _, mul_in, _, k_q_out, k_q_in = self._shape(path)
            share = mul_in * k_q_out * k_q_in * neighbours[path.outer]
            terms[path.l_out, path.parity_out] += share
        with torch.no_grad():
            for path, weight in self.path_weights():
                # A path of odd l_p has no term at all within a radius of 0.
                weight.normal_(0, max(terms[path.l_out, path.parity_out], 1e-6) ** -0.5)

    def _neighbours(self) -> dict[int, float]:
        """Sum of the squared outer embeddings over the neighbours on a typical grid, by order."""
        affine = np.diag([TYPICAL_VOXEL_MM] * 3 + [1.0])
        radius = self.phi_p.end
        _, edges = grid_edges(np.ones((1, 1, 1)), affine, radius)
        # Averages over voxels hardly change filters that are much wider.
        if self.quadrature == "integral" and radius < 10 * TYPICAL_VOXEL_MM:
            edges = edges.integrated(radius)
        sums: dict[int, float] = {}
        with torch.no_grad():
            # A radius can reach a million voxels.
            for part in chunks(len(edges.offsets), 1, 4096):
                some = edges.of_types(part)
                for l, e in self.embed_p(some, self.weight.dtype).items():
                    sums[l] = sums.get(l, 0.0) + float(e.square().sum()) / (2 * l + 1)
        return sums

    @cached_property
    def recoupling(self) -> Recoupling:
        """Tables that convert the weights to mixing matrices."""
        return Recoupling.build(self.paths, self.channels_in, self.channels_out, self.radial)

    def path_weights(self) -> Iterator[tuple[Path, Tensor]]:
        """Each path with a view of its weights, (mul_out, mul_in, K_p, K_q_out, K_q_in)."""
        start = 0
        for path in self.paths:
            stop = start + self._numel(path)
            yield path, self.weight[start:stop].view(self._shape(path))
            start = stop

    @property
    def exact_weight(self) -> Tensor:
        """All weights, in float32 if they are in half precision, as sums need it."""
        return self.weight.to(accumulation_dtype(self.weight.dtype))

    # -- embeddings ----------------------------------------------------------------------------

    def constants_p(self, edges: PEdges, dtype: torch.dtype) -> Hashable | None:
        """All that the p-embedding on a grid depends on but the edges; None if it is to be made.

        That is where radial functions are learned, where derivatives are taken for the offsets,
        and for irregular voxels: there the embedding has a row for each edge.
        """
        if edges.steps is None or _differentiated(edges.offsets, edges.weights):
            return None
        return _together(dtype, self.phi_p.constants, *sorted({p.outer for p in self.paths}))

    def constants_q(self, q: QSpace, dtype: torch.dtype) -> Hashable | None:
        """The same for harmonics of q-offsets and for radial functions of |q|."""
        if _differentiated(q.q_in, q.q_out, q.weights, q.shares):
            return None
        return _together(
            dtype,
            self.phi_q_out.constants,
            self.phi_q_in.constants,
            self.kind,
            self.unit_directions,
            self.antipodal,
            *sorted({path.inner for path in self.paths}),
        )

    def inner_harmonics(self, p_offset: Tensor, q_out: Tensor, q_in: Tensor) -> dict[int, Tensor]:
        """Harmonics that the fast evaluation couples to the input first.

        Those of the q-offset; of a ``"diff"`` filter, those of the difference of both offsets.
        The arguments are broadcast against each other, (..., 3) -> l: (..., 2 l + 1).
        """
        if self.kind == "p":
            shape = torch.broadcast_shapes(q_out.shape, q_in.shape)[:-1]
            return {0: q_in.new_ones(*shape, 1)}
        orders = {path.inner for path in self.paths}

        def harmonics(offset: Tensor) -> list[Tensor]:
            by_order = _harmonics(orders, p_offset - offset if self.joint else offset)
            return [by_order[l] for l in orders]

        means = mean_over_signs(harmonics, self.q_ends(q_out), self.q_ends(q_in), self.signs)
        return dict(zip(orders, means, strict=True))

    @property
    def joint(self) -> bool:
        """Whether the inner harmonics depend on both offsets, so that they do not factor."""
        return self.kind == "diff"

    def q_ends(self, q: Tensor) -> Tensor:
        """The vectors whose differences are the q-offsets: q-vectors, or their directions."""
        return unit_vectors(q) if self.unit_directions else q

    @property
    def signs(self) -> list[tuple[int, int]]:
        """Signs of (q_out, q_in) that the inner harmonics are averaged over.

        Flipping both turns a q-offset round, which even harmonics do not see: for them two of the
        four suffice.  In a joint offset p stays, so all four count.
        """
        if not self.antipodal:
            return [(1, 1)]
        return list(itertools.product((1, -1) if self.joint else (1,), (1, -1)))

    def outer_harmonics(self, p_offset: Tensor) -> dict[int, Tensor]:
        """Harmonics that the fast evaluation couples last: those of the p-offset, if separate."""
        return _harmonics({path.outer for path in self.paths}, p_offset)

    def radial_q_in(self, q: QSpace | NodeSpace, dtype: torch.dtype) -> Tensor:
        """phi_q_in at the input directions or nodes, (Q_in, K_q_in); of an integral normalised.

        Each function is divided by the sum of its absolute values over the shells, so that what a
        shell contributes does not shrink where others are measured too.
        """
        q_in = q.q if isinstance(q, NodeSpace) else q.q_in
        phi = self.phi_q_in(q_in.to(dtype).norm(dim=-1))
        if q.shares is None:
            return phi
        sizes = q.shares.to(dtype)[:, None] * phi.abs()
        if isinstance(q, NodeSpace):
            sums = phi.new_zeros(q.n_voxels, phi.shape[1]).index_add(0, q.voxel, sizes)[q.voxel]
        else:
            sums = sizes.sum(dim=0)
        return phi / sums.clamp(min=LEAST_SUM)

    def radial_p(self, edges: PEdges, dtype: torch.dtype) -> Tensor:
        """Quadrature weight x phi_p at each p-offset, without averages over voxels: (T, K_p)."""
        phi = self.phi_p(edges.offsets.to(dtype).norm(dim=-1))
        return phi if edges.weights is None else phi * edges.weights.to(dtype)[:, None]

    def embed_p(self, edges: PEdges, dtype: torch.dtype) -> dict[int, Tensor]:
        """Quadrature weight x phi_p x outer harmonics: l -> (T, K_p, 2 l + 1).

        Of an integral on a grid it is the average over the voxel around each offset.  On a grid
        constant embeddings are kept with the edges, for all filters with the same functions.
        """
        return keep(edges, self.constants_p(edges, dtype), lambda: self._embed_p(edges, dtype))

    def _embed_p(self, edges: PEdges, dtype: torch.dtype) -> dict[int, Tensor]:
        embedding = self._outer_embedding(edges.offsets.to(dtype), edges.rule)
        if edges.weights is None:
            return embedding
        weights = edges.weights.to(dtype)[:, None, None]
        return {l: weights * e for l, e in embedding.items()}

    def mixing_matrices(self) -> list[Tensor]:
        """The weights, recoupled: for each `Mixing` a tensor (K_q_out, columns, rows)."""
        flat = _mixing_matrix(self).times(self.exact_weight)
        k_q_out = self.radial[1]
        matrices = []
        for mixing in self.recoupling.mixings:
            size = k_q_out * mixing.n_columns * mixing.n_rows
            matrix = flat[mixing.start : mixing.start + size]
            matrices.append(matrix.view(k_q_out, mixing.n_columns, mixing.n_rows))
        return matrices

    # -- the definition ------------------------------------------------------------------------

    def kernel(
        self,
        p_offset: Tensor,
        q_out: Tensor,
        q_in: Tensor,
        *,
        rule: VoxelRule | None = None,
        phi_q_in: Tensor | None = None,
    ) -> Tensor:
        """The filter at given offsets, straight from the definition.

        Parameters
        ----------
        p_offset, q_out, q_in : Tensors of shape (..., 3)
            Broadcast against each other; mm and sqrt(b / b_ref), world axes.
        rule : VoxelRule, optional
            Average the filter over a voxel around each p-offset; 0 beyond the radius.
        phi_q_in : Tensor of shape (..., K_q_in), optional
            Values of the radial functions of |q_in|, where they are normalised over shells.

        Returns
        -------
        Tensor of shape (..., dim_out, dim_in)
        """
        if phi_q_in is None:
            phi_q_in = self.phi_q_in(q_in.norm(dim=-1))
        phi_q_out = self.phi_q_out(q_out.norm(dim=-1))
        shape = torch.broadcast_shapes(p_offset.shape, q_out.shape, q_in.shape)[:-1]
        result = p_offset.new_zeros(*shape, self.dim_out * self.dim_in)
        angular = self._angular(p_offset, q_out, q_in, rule)
        for path, weight in self.path_weights():
            weight = weight.to(result.dtype)
            to_filter = coupling_tensor(path.outer, path.inner, path.l_filter, result)
            filter = torch.einsum("...kpq,pqf->...kf", angular(path), to_filter)
            to_out = coupling_tensor(path.l_filter, path.l_in, path.l_out, result)
            tensor = torch.einsum("...kf,fio->...koi", filter, to_out)
            scale = torch.einsum("uvkbc,...b,...c->...uvk", weight, phi_q_out, phi_q_in)
            block = torch.einsum("...uvk,...koi->...uovi", scale, tensor)
            # A compiler foresees other strides of a product than it has.
            block = block.clone(memory_format=torch.contiguous_format).flatten(-4)
            i, o = self.channels_of(path)
            place = self.index_out(o)[:, None] * self.dim_in + self.index_in(i)
            result = result.index_add(-1, place.flatten(), block)
        return result.unflatten(-1, (self.dim_out, self.dim_in))

    def _angular(
        self, p_offset: Tensor, q_out: Tensor, q_in: Tensor, rule: VoxelRule | None
    ) -> Callable[[Path], Tensor]:
        """phi_p x outer x inner harmonics of a path, (..., K_p, 2 l_outer + 1, 2 l_inner + 1)."""
        if not self.joint:
            outer = self._outer_embedding(p_offset, rule)
            inner = self.inner_harmonics(p_offset, q_out, q_in)
            return lambda path: outer[path.outer][..., None] * inner[path.inner][..., None, None, :]
        total: dict[int, Tensor] = {}
        for shifted, share in _points_around(p_offset, rule):
            phi = (share * self.phi_p(shifted.norm(dim=-1)))[..., None]
            for l, y in self.inner_harmonics(shifted, q_out, q_in).items():
                term = phi * y[..., None, :]
                total[l] = total[l] + term if l in total else term
        return lambda path: total[path.inner][..., None, :]

    def _outer_embedding(self, p_offset: Tensor, rule: VoxelRule | None) -> dict[int, Tensor]:
        """phi_p x outer harmonics, averaged over a voxel by a rule: (..., K_p, 2 l + 1)."""
        if rule is None:
            phi = self.phi_p(p_offset.norm(dim=-1))
            harmonics = self.outer_harmonics(p_offset)
            return {l: phi[..., None] * y[..., None, :] for l, y in harmonics.items()}
        points = p_offset[..., None, :] + rule.points.to(p_offset.dtype)
        lengths = points.norm(dim=-1)
        shares = rule.shares.to(p_offset.dtype) * inside(lengths, rule.radius)
        phi = shares[..., None] * self.phi_p(lengths)
        harmonics = self.outer_harmonics(points)
        return {l: phi.transpose(-1, -2) @ y for l, y in harmonics.items()}

    # -- small things --------------------------------------------------------------------------

    @property
    def dim_in(self) -> int:
        """Number of components of the input features."""
        return sum(len(c.index) for c in self.channels_in)

    @property
    def dim_out(self) -> int:
        """Number of components of the output features."""
        return sum(len(c.index) for c in self.channels_out)

    def index_in(self, channels: int) -> Tensor:
        """Positions of the components of `channels_in[channels]`."""
        return positions(self.channels_in[channels].index, self.weight.device)

    def index_out(self, channels: int) -> Tensor:
        """Positions of the components of `channels_out[channels]`."""
        return positions(self.channels_out[channels].index, self.weight.device)

    def channels_of(self, path: Path) -> tuple[int, int]:
        """Which input and which output channels a path joins."""
        orders_in = [(c.l, c.parity) for c in self.channels_in]
        orders_out = [(c.l, c.parity) for c in self.channels_out]
        return (
            orders_in.index((path.l_in, path.parity_in)),
            orders_out.index((path.l_out, path.parity_out)),
        )

    def _shape(self, path: Path) -> tuple[int, ...]:
        i, o = self.channels_of(path)
        return (self.channels_out[o].mul, self.channels_in[i].mul, *self.radial)

    def _numel(self, path: Path) -> int:
        return math.prod(self._shape(path))

    def extra_repr(self) -> str:
        """Kind, numbers of paths and weights."""
        return f"{self.kind!r}, {len(self.paths)} paths, {self.weight.numel():,} weights"


def _points_around(
    p_offset: Tensor, rule: VoxelRule | None
) -> Iterator[tuple[Tensor, Tensor | float]]:
    """The offsets at each point of a rule, with (..., 1) or one share; themselves without one."""
    if rule is None:
        yield p_offset, 1.0
        return
    for point, share in zip(rule.points.to(p_offset.dtype), rule.shares.tolist(), strict=True):
        shifted = p_offset + point
        yield shifted, share * inside(shifted.norm(dim=-1, keepdim=True), rule.radius)


def _differentiated(*tensors: Tensor | None) -> bool:
    """Whether derivatives may be taken for one of some tensors."""
    return needs_twin() or any(x is not None and x.requires_grad for x in tensors)


def _together(*parts: Hashable | None) -> Hashable | None:
    return None if None in parts else parts


@kept_with_owner
def _mixing_matrix(filter: PQFilter) -> SparseMatrix:
    """The matrix from the weights to all mixing matrices, in one flat list."""
    tables = filter.recoupling
    shape = tables.size, filter.weight.numel()
    return SparseMatrix.of(shape, tables.targets, tables.sources, tables.coefficients)


def _harmonics(orders: set[int], v: Tensor) -> dict[int, Tensor]:
    """Spherical harmonics of offsets (..., 3), l: (..., 2 l + 1); on a GPU by one kernel."""
    if not orders or not runs_in_triton(v):
        return spherical_harmonics(orders, v)
    together = edge_harmonics(v.reshape(-1, 3), max(orders))
    together = together.view(*v.shape[:-1], together.shape[1])
    return {l: together[..., l * l : (l + 1) ** 2] for l in orders}


@kept
def positions(index: tuple[int, ...], device: torch.device) -> Tensor:
    """Numbers as a tensor, kept to avoid waiting for a device; read-only."""
    return torch.tensor(index, dtype=torch.int64, device=device)


def ungrouped(channels: Sequence[Channels], device: torch.device) -> Tensor:
    """The permutation that restores the order of components listed group by group."""
    order = [i for c in channels for i in c.index]
    return positions(tuple(sorted(range(len(order)), key=order.__getitem__)), device)


def coupling_tensor(l_a: int, l_b: int, l_c: int, like: Tensor) -> Tensor:
    """Clebsch-Gordan coefficients (2 l_a + 1, 2 l_b + 1, 2 l_c + 1), dtype and device as `like`.

    It is shared: not to be written to.
    """
    return _coupling(l_a, l_b, l_c, like.dtype, like.device)


@kept
def _coupling(l_a: int, l_b: int, l_c: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(clebsch_gordan(l_a, l_b, l_c), dtype=dtype, device=device)
