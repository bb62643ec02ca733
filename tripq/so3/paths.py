r"""Paths of a filter: the combinations of orders, and the rules that select them.

A filter joins an input channel of order :math:`l_{in}` to an output channel of order
:math:`l_{out}` through spherical harmonics of the p-offset (order :math:`l_p`) and of the q-offset
(order :math:`l_q`), coupled to a filter order :math:`l_f` (`l_filter`).  Every admissible tuple of
orders is one `Path`, with its own weights.  The rules are those of Müller, Golkov, Tomassini and
Cremers (arXiv:2102.06942), section 3:

.. math::
    |l_{out} - l_{in}| \le l_f \le l_{out} + l_{in}, \qquad
    |l_p - l_q| \le l_f \le l_p + l_q, \qquad
    |l_f - l_p| \le 1,

to which the selection ``"tp1"`` (the default of the authors' own code) adds
:math:`|l_f - l_q| \le 1`.  The third rule has a cost.  At zero p-offset only the harmonic of order
:math:`l_p = 0` is not zero, and the rule limits it to :math:`l_f \le 1`.  So a layer from scalars
does not see the anisotropy of a voxel's own signal, only that of its neighbours.  The selection
``"all"`` drops the rule, up to a cap on :math:`l_p`.

This module is independent of torch and of graphs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

FilterKind = Literal["tp", "diff", "p", "q"]
Selection = Literal["paper", "tp1", "all"]
Group = Literal["SO3", "O3"]


@dataclass(frozen=True)
class Path:
    """One way from an input order to an output order through a filter.

    Attributes
    ----------
    l_in, l_out : int
        Orders of the input and of the output channels.
    l_filter : int
        Order of the filter, to which `l_p` and `l_q` are coupled.
    l_p, l_q : int
        Orders of the spherical harmonics of the p-offset and of the q-offset.  A ``"diff"`` filter
        has a single harmonic, of the difference of the two offsets; it stands in the place of the
        first one: ``l_p == l_filter`` and ``l_q == 0``.  `inner` and `outer` know that.
    filter : {"tp", "diff", "p", "q"}
        The kind of filter that the path belongs to.
    parity_in, parity_out : {1, -1}
        Parities of the channels; always 1 where the group is SO(3), which ignores them.
    """

    l_in: int
    l_out: int
    l_filter: int
    l_p: int
    l_q: int
    filter: FilterKind = "tp"
    parity_in: int = 1
    parity_out: int = 1

    @property
    def inner(self) -> int:
        """Order of the harmonic of the q-offset, or of the only one of a ``"diff"`` filter.

        The fast evaluation couples it to the input first.
        """
        return self.l_filter if self.filter == "diff" else self.l_q

    @property
    def outer(self) -> int:
        """Order of the harmonic of the p-offset alone, which a ``"diff"`` filter has not: 0.

        The fast evaluation couples it last.

        Examples
        --------
        >>> path = Path(l_in=0, l_out=2, l_filter=2, l_p=2, l_q=0, filter="diff")
        >>> path.inner, path.outer
        (2, 0)
        """
        return 0 if self.filter == "diff" else self.l_p


@dataclass(frozen=True)
class Channels:
    """The channels of one order (and, in O(3), of one parity) of a feature map.

    Attributes
    ----------
    l, parity : int
        Order and parity; the parity is 1 for every channel where the group is SO(3).
    index : tuple of int
        Positions of the components in the feature vector: channel after channel, and for each
        channel m = -l..l.
    """

    l: int
    parity: int
    index: tuple[int, ...]

    @property
    def mul(self) -> int:
        """Number of channels."""
        return len(self.index) // (2 * self.l + 1)


@dataclass(frozen=True)
class Caps:
    """Largest orders allowed; None allows whatever the triangle rules allow."""

    lmax_p: int | None = None
    lmax_q: int | None = None
    lmax_filter: int | None = None

    def __post_init__(self) -> None:
        for name in ("lmax_p", "lmax_q", "lmax_filter"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{name} must be at least 0 (or None for no cap), not {value}")

    def admit(self, l_filter: int, l_p: int, l_q: int) -> bool:
        """Whether the three orders lie within the caps."""
        return all(
            cap is None or order <= cap
            for cap, order in (
                (self.lmax_filter, l_filter),
                (self.lmax_p, l_p),
                (self.lmax_q, l_q),
            )
        )


def parse_filter(filter: str) -> tuple[FilterKind, ...]:
    """Split a filter such as ``"tp + p"`` into the kinds that it sums.

    Raises
    ------
    ValueError
        If a kind is unknown or named twice.

    Examples
    --------
    >>> parse_filter("tp + diff")
    ('tp', 'diff')
    """
    kinds = tuple(part.strip() for part in filter.split("+"))
    known = get_args(FilterKind)
    for kind in kinds:
        if kind not in known:
            raise ValueError(
                f"unknown filter {kind!r} in {filter!r}: a filter is one of {', '.join(known)}, "
                'or a sum of them such as "tp + p"'
            )
    if len(set(kinds)) < len(kinds):
        raise ValueError(f"filter {filter!r} names a kind twice; each kind can be summed once")
    return kinds  # type: ignore[return-value]  # every element was checked above


def filter_orders(
    kind: FilterKind,
    l_in: int,
    l_out: int,
    selection: Selection = "paper",
    caps: Caps = Caps(),
) -> Iterator[tuple[int, int, int]]:
    """Iterate over the (l_filter, l_p, l_q) that lead from `l_in` to `l_out`.

    Raises
    ------
    ValueError
        If the selection is ``"all"`` and nothing caps l_p: then there is no end to them.

    Examples
    --------
    >>> list(filter_orders("tp", 0, 0))
    [(0, 0, 0), (0, 1, 1)]
    >>> list(filter_orders("tp", 0, 2, "all", Caps(lmax_p=0)))
    [(2, 0, 2)]
    >>> list(filter_orders("p", 1, 1))
    [(0, 0, 0), (1, 1, 0), (2, 2, 0)]
    """
    for l_f in range(abs(l_out - l_in), l_out + l_in + 1):
        if kind in ("p", "diff"):
            candidates = [(l_f, 0)]
        elif kind == "q":
            candidates = [(0, l_f)]
        else:
            candidates = [
                (l_p, l_q)
                for l_p in _orders_of_p(l_f, selection, caps)
                for l_q in range(abs(l_p - l_f), l_p + l_f + 1)
                if selection != "tp1" or abs(l_f - l_q) <= 1
            ]
        yield from ((l_f, l_p, l_q) for l_p, l_q in candidates if caps.admit(l_f, l_p, l_q))


def _orders_of_p(l_f: int, selection: Selection, caps: Caps) -> range:
    if selection != "all":
        return range(max(l_f - 1, 0), l_f + 2)
    if caps.lmax_p is None:
        raise ValueError('selection="all" needs lmax_p: no other rule limits l_p')
    return range(caps.lmax_p + 1)


def select_paths(
    kind: FilterKind,
    channels_in: tuple[Channels, ...],
    channels_out: tuple[Channels, ...],
    *,
    selection: Selection = "paper",
    caps: Caps = Caps(),
    group: Group = "SO3",
    antipodal: bool = False,
) -> tuple[Path, ...]:
    """All paths of a filter of one kind between two feature maps.

    With O(3) the filter of a path has parity ``(-1) ** (l_p + l_q)``, and only paths on which the
    parities match exist.  An antipodal filter is even in every q-vector, so odd harmonics of the
    q-offset vanish and are left out.

    Examples
    --------
    >>> scalars = (Channels(0, 1, (0,)),)
    >>> [(p.l_filter, p.l_p, p.l_q) for p in select_paths("tp", scalars, scalars)]
    [(0, 0, 0), (0, 1, 1)]
    >>> select_paths("tp", scalars, scalars, antipodal=True)
    (Path(l_in=0, l_out=0, l_filter=0, l_p=0, l_q=0, filter='tp', parity_in=1, parity_out=1),)
    """
    return tuple(
        Path(c_in.l, c_out.l, l_f, l_p, l_q, kind, c_in.parity, c_out.parity)
        for c_out in channels_out
        for c_in in channels_in
        for l_f, l_p, l_q in filter_orders(kind, c_in.l, c_out.l, selection, caps)
        if group == "SO3" or c_in.parity * (-1) ** (l_p + l_q) == c_out.parity
        if not (antipodal and l_q % 2)
    )
