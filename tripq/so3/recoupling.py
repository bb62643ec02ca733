r"""Clebsch-Gordan coefficients, and the change of coupling order that makes the layer fast.

The definition couples the two harmonics first and the input last,

.. math:: T^{(l_f)} = C(l_{out}; l_f\, l_{in})\; C(l_f; l_p\, l_q),

the fast evaluation couples the q-harmonic to the input first and the p-harmonic last,

.. math:: B^{(l_1)} = C(l_{out}; l_p\, l_1)\; C(l_1; l_q\, l_{in}).

Both families are bases of the rotation-invariant tensors of
:math:`l_{out} \times l_p \times l_q \times l_{in}`, hence :math:`T^{(l_f)} = \sum_{l_1}
U_{l_f l_1} B^{(l_1)}` with the recoupling (6j) coefficients
:math:`U = \langle T, B\rangle / \langle B, B\rangle`.

`Recoupling` computes the tables of the fast evaluation from the paths of a filter.  All results are
NumPy arrays in float64, independent of features and graphs; torch is used only by e3nn, which
computes the coefficients.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from tripq.infra.e3nn import o3
from tripq.infra.kept import kept
from tripq.so3.paths import Channels, Path

# A recoupling coefficient is either exactly zero by symmetry or of order 1 / (2 l + 1), and a
# product of couplings likewise far larger; what is smaller than this is rounding.
_NEGLIGIBLE = 1e-12


@kept
def clebsch_gordan(l_a: int, l_b: int, l_c: int) -> NDArray[np.float64]:
    """Coefficients that couple orders `l_a` and `l_b` to `l_c`, in e3nn's real basis.

    Returns
    -------
    ndarray of shape (2 l_a + 1, 2 l_b + 1, 2 l_c + 1)
        Read-only; for each component of `l_c` the squares sum to 1.

    Examples
    --------
    >>> c = clebsch_gordan(1, 1, 0)      # a scalar product, up to its factor
    >>> bool(np.allclose(c[:, :, 0], np.eye(3) / np.sqrt(3)))
    True
    """
    wigner = o3.wigner_3j(l_a, l_b, l_c, dtype=torch.float64).numpy()
    coefficients: NDArray[np.float64] = np.sqrt(2 * l_c + 1) * wigner
    coefficients.setflags(write=False)
    return coefficients


@cache
def recoupling_coefficient(
    l_in: int, l_out: int, l_p: int, l_q: int, l_filter: int, l_1: int
) -> float:
    """U[l_filter, l_1], the share of the coupling by `l_1` in the coupling by `l_filter`.

    Examples
    --------
    >>> round(recoupling_coefficient(0, 0, 1, 1, 0, 1), 12)
    1.0
    """
    t = np.einsum(
        "fio,pqf->opqi", clebsch_gordan(l_filter, l_in, l_out), clebsch_gordan(l_p, l_q, l_filter)
    )
    b = np.einsum("pko,qik->opqi", clebsch_gordan(l_p, l_1, l_out), clebsch_gordan(l_q, l_in, l_1))
    return float((t * b).sum() / (b * b).sum())


@cache
def path_coupling(path: Path) -> NDArray[np.float64]:
    """Coefficients that couple both harmonics and the input: (m_p, m_q, m_in, m_out).

    The product of both couplings of a path, exactly zero where symmetry requires it.  A ``"diff"``
    filter has one harmonic only, in place of m_q, and order 0 in place of m_p.

    Examples
    --------
    >>> path_coupling(Path(l_in=0, l_out=1, l_filter=1, l_p=1, l_q=0, filter="tp")).shape
    (3, 1, 1, 3)
    """
    to_filter = clebsch_gordan(path.outer, path.inner, path.l_filter)
    to_out = clebsch_gordan(path.l_filter, path.l_in, path.l_out)
    product = np.einsum("pqf,fio->pqio", to_filter, to_out)
    coefficients: NDArray[np.float64] = np.where(np.abs(product) > _NEGLIGIBLE, product, 0.0)
    coefficients.setflags(write=False)
    return coefficients


@dataclass(frozen=True)
class Block:
    """A run of rows or columns of a mixing matrix: channels together with one harmonic.

    Attributes
    ----------
    channels : int
        Which `Channels` of the feature map.
    l : int
        Order of the harmonic that they are coupled with.
    start, stop : int
        The run; within it the radial function is the outer and the channel the inner index.
    """

    channels: int
    l: int
    start: int
    stop: int


@dataclass(frozen=True)
class Mixing:
    """Shape of the mixing matrix for one intermediate order `l_1`.

    Rows are (output channels, outer harmonic, radial function in p), columns (input channels,
    inner harmonic, radial function of q_in); there is one matrix for each radial function of q_out.
    """

    l_1: int
    rows: tuple[Block, ...]
    columns: tuple[Block, ...]
    start: int  # start of the matrices in the flat list of all of them

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return self.rows[-1].stop

    @property
    def n_columns(self) -> int:
        """Number of columns."""
        return self.columns[-1].stop


@dataclass(frozen=True)
class Recoupling:
    """Tables from the weights of a filter to mixing matrices, one set for each order `l_1`.

    The *inner* harmonic is coupled to the input first: that of the q-offset, or the only one of a
    ``"diff"`` filter.  The *outer* one comes last: that of the p-offset, or order 0.

    Attributes
    ----------
    mixings : tuple of Mixing
        One for each `l_1` that occurs.
    radial : (int, int, int)
        Numbers of radial functions: of the p-offset, of q_out, of q_in.
    targets, sources : ndarray of int
        The mixing matrices, all of them in one flat list, are
        ``flat[targets] += coefficients * weight[sources]``.
    coefficients : ndarray of float64
        Their recoupling coefficients.
    size : int
        Length of the flat list.
    """

    mixings: tuple[Mixing, ...]
    radial: tuple[int, int, int]
    targets: NDArray[np.int64]
    sources: NDArray[np.int64]
    coefficients: NDArray[np.float64]
    size: int

    @classmethod
    def build(
        cls,
        paths: tuple[Path, ...],
        channels_in: tuple[Channels, ...],
        channels_out: tuple[Channels, ...],
        radial: tuple[int, int, int],
    ) -> Recoupling:
        """Make the tables for `paths`.

        The flat weight contains for each path, in order, an array of shape (mul_out, mul_in, K_p,
        K_q_out, K_q_in).
        """
        index_in = {(c.l, c.parity): i for i, c in enumerate(channels_in)}
        index_out = {(c.l, c.parity): i for i, c in enumerate(channels_out)}
        k1, k2, k3 = radial

        couplings = [_Coupling.of(path, index_in, index_out) for path in paths]
        mixings: list[Mixing] = []
        size = 0
        for l_1 in sorted({l_1 for coupling in couplings for l_1, _ in coupling.terms}):
            here = [c for c in couplings if any(l_1 == other for other, _ in c.terms)]
            rows = _blocks(((c.out, c.outer) for c in here), channels_out, k1)
            columns = _blocks(((c.inp, c.inner) for c in here), channels_in, k3)
            mixings.append(Mixing(l_1, rows, columns, size))
            size += k2 * rows[-1].stop * columns[-1].stop

        by_order = {mixing.l_1: mixing for mixing in mixings}
        targets, sources, coefficients = [], [], []
        first = 0
        for coupling in couplings:
            mul_out, mul_in = channels_out[coupling.out].mul, channels_in[coupling.inp].mul
            shape = (mul_out, mul_in, k1, k2, k3)
            o, i, a, b, c = np.indices(shape)
            weight_index = first + np.arange(o.size)
            first += o.size
            for l_1, u in coupling.terms:
                mixing = by_order[l_1]
                row = _start(mixing.rows, coupling.out, coupling.outer) + a * mul_out + o
                column = _start(mixing.columns, coupling.inp, coupling.inner) + c * mul_in + i
                flat = mixing.start + (b * mixing.n_columns + column) * mixing.n_rows + row
                targets.append(flat.ravel())
                sources.append(weight_index)
                coefficients.append(np.full(o.size, u))
        return cls(
            tuple(mixings),
            radial,
            _concatenate(targets, np.int64),
            _concatenate(sources, np.int64),
            _concatenate(coefficients, np.float64),
            size,
        )


@dataclass(frozen=True)
class _Coupling:
    """A path in the order of the fast evaluation: channels, harmonics, and (l_1, U) pairs."""

    inp: int
    out: int
    inner: int
    outer: int
    terms: tuple[tuple[int, float], ...]

    @classmethod
    def of(
        cls,
        path: Path,
        index_in: dict[tuple[int, int], int],
        index_out: dict[tuple[int, int], int],
    ) -> _Coupling:
        outer, inner = path.outer, path.inner
        lowest = max(abs(inner - path.l_in), abs(outer - path.l_out))
        highest = min(inner + path.l_in, outer + path.l_out)
        terms = (
            (
                l_1,
                recoupling_coefficient(path.l_in, path.l_out, outer, inner, path.l_filter, l_1),
            )
            for l_1 in range(lowest, highest + 1)
        )
        return cls(
            index_in[path.l_in, path.parity_in],
            index_out[path.l_out, path.parity_out],
            inner,
            outer,
            tuple((l_1, u) for l_1, u in terms if abs(u) > _NEGLIGIBLE),
        )


def _blocks(
    keys: Iterable[tuple[int, int]], channels: tuple[Channels, ...], n_radial: int
) -> tuple[Block, ...]:
    blocks: list[Block] = []
    start = 0
    for index, order in sorted(set(keys)):
        stop = start + n_radial * channels[index].mul
        blocks.append(Block(index, order, start, stop))
        start = stop
    return tuple(blocks)


def _start(blocks: tuple[Block, ...], channels: int, order: int) -> int:
    return next(b.start for b in blocks if (b.channels, b.l) == (channels, order))


def _concatenate(parts: list[NDArray], dtype: type) -> NDArray:
    return np.concatenate(parts).astype(dtype) if parts else np.empty(0, dtype)
