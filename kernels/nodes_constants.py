"""Constants that the kernels of `tripq.kernels.nodes_triton` are compiled with.

The harmonics Y_l are polynomials of the unit vector u = (x, y, z),

    Y_{l m}(u) = sum over monomials j of order m:  c_j x^{a_j} y^{b_j} z^{l - a_j - b_j},

and the couplings sums over the Clebsch-Gordan coefficients that are not 0.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch

from tripq.infra.e3nn import o3
from tripq.infra.kept import kept
from tripq.kernels.nodes_arguments import Coupling
from tripq.so3.recoupling import clebsch_gordan

# A polynomial coefficient is either 0 by symmetry or of order 0.1 and more.
_NEGLIGIBLE = 1e-9


@kept
def harmonic_polynomial(l: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """The spherical harmonics of order `l` as polynomials of degree `l` of the unit vector.

    Returns
    -------
    monomials : tuple of int
        For each monomial four numbers: its component m + l, and its exponents of x, y and z, which
        sum to `l`.
    coefficients : tuple of float
        Their factors, in e3nn's basis and "component" normalisation.

    Examples
    --------
    >>> monomials, coefficients = harmonic_polynomial(1)
    >>> monomials, [round(c, 6) for c in coefficients]
    ((0, 1, 0, 0, 1, 0, 1, 0, 2, 0, 0, 1), [1.732051, 1.732051, 1.732051])
    """
    # On the sphere the monomials of one degree are independent: there is only one solution.
    exponents = [(a, b, l - a - b) for a in range(l, -1, -1) for b in range(l - a, -1, -1)]
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(8 * len(exponents), 3, generator=generator, dtype=torch.float64)
    points = points / points.norm(dim=1, keepdim=True)
    values = torch.stack([points.pow(torch.tensor(e)).prod(dim=1) for e in exponents], dim=1)
    harmonics = o3.spherical_harmonics(l, points, normalize=False, normalization="component")
    fitted = torch.linalg.lstsq(values, harmonics).solution.T.tolist()
    terms = [
        (component, *e, c)
        for component, row in enumerate(fitted)
        for e, c in zip(exponents, row, strict=True)
        if abs(c) > _NEGLIGIBLE
    ]
    return tuple(n for term in terms for n in term[:4]), tuple(term[4] for term in terms)


class Compiled(NamedTuple):
    """Constants of a kernel: the orders of a coupling, its polynomials and coefficients.

    Attributes
    ----------
    l_p, l_q, l_in, l_1, l_out, signs, joint
        Those of the `Coupling`.
    monomials, monomial_factors : tuples of numbers
        The inner harmonic: `harmonic_polynomial`, divided by the number of signs.
    inner, outer : tuples of int
        For each term of a coupling the components of harmonic, features and result.
    inner_factors, outer_factors : tuples of float
        Their Clebsch-Gordan coefficients.
    """

    l_p: int
    l_q: int
    l_in: int
    l_1: int
    l_out: int
    signs: tuple[int, ...]
    joint: bool
    monomials: tuple[int, ...]
    monomial_factors: tuple[float, ...]
    inner: tuple[int, ...]
    inner_factors: tuple[float, ...]
    outer: tuple[int, ...]
    outer_factors: tuple[float, ...]


@cache
def compiled(coupling: Coupling) -> Compiled:
    """The constants for a coupling."""
    monomials, factors = harmonic_polynomial(coupling.l_q)
    return Compiled(
        *coupling,
        monomials,
        tuple(2 * c / len(coupling.signs) for c in factors),
        *_nonzero(coupling.l_q, coupling.l_in, coupling.l_1),
        *_nonzero(coupling.l_p, coupling.l_1, coupling.l_out),
    )


def _nonzero(l_a: int, l_b: int, l_c: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Three indices of each Clebsch-Gordan coefficient, and its value."""
    coefficients = clebsch_gordan(l_a, l_b, l_c)
    where = [
        tuple(int(i) for i in index)
        for index in zip(*coefficients.nonzero(), strict=True)
        if abs(coefficients[index]) > 1e-12
    ]
    return tuple(i for index in where for i in index), tuple(
        float(coefficients[index]) for index in where
    )
