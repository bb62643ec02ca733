"""Rows of a batch: how features of several graphs lie in one tensor.

The rows of graphs i = 1..B follow each other, and where rows have directions, those of each graph
are padded with zeros to the longest:

    x_i (V_i, Q_i, ...)  ->  x (sum V_i, max Q_i, ...)

`pad_rows` writes them, and the `Extent` of each graph gives its part of x.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tripq.domain.nodes import NodeSpace
from tripq.domain.qspace import QSpace
from tripq.domain.scan_graph import ScanGraph


@dataclass(frozen=True)
class Extent:
    """Sizes of the features on one graph before it was merged with others.

    Attributes
    ----------
    voxels : int
        Rows of maps without q-space.
    rows_in, rows_out : int
        Rows of features: the voxels again, or the input and the output nodes.
    directions_in, directions_out : int
        Of a gradient table that all voxels share; of several tables, the longest.  Else 0.
    """

    voxels: int
    rows_in: int
    rows_out: int
    directions_in: int = 0
    directions_out: int = 0

    @classmethod
    def of(cls, scans: Sequence[ScanGraph]) -> Extent:
        """Of the graph of some scans."""
        voxels = sum(scan.n_voxels for scan in scans)
        nodes = [scan.q for scan in scans if isinstance(scan.q, NodeSpace)]
        if nodes:
            return cls(voxels, sum(len(q.q) for q in nodes), sum(len(q.q_out) for q in nodes))
        spaces = [scan.q for scan in scans if isinstance(scan.q, QSpace)]
        return cls(
            voxels,
            voxels,
            voxels,
            max((len(q.q_in) for q in spaces), default=0),
            max((len(q.q_out) for q in spaces), default=0),
        )


def pad_rows(features: Sequence[Tensor]) -> Tensor:
    """Concatenate (V_i, Q_i, ...) along the voxels, the directions padded to the longest row."""
    if len(features) == 1:
        return features[0]
    if features[0].ndim < 2:
        return torch.cat(list(features))
    longest = max(x.shape[1] for x in features)
    padded = []
    for x in features:
        missing = longest - x.shape[1]
        if missing:
            x = torch.cat([x, x.new_zeros(x.shape[0], missing, *x.shape[2:])], dim=1)
        padded.append(x)
    return torch.cat(padded)


def rows_of(extents: Sequence[Extent], n_rows: int, graph: object) -> list[int]:
    """How many of the rows of features each of the merged graphs has; errors name the graph."""
    kinds = [[part.rows_out, part.rows_in, part.voxels] for part in extents]
    fitting = {rows for rows in zip(*kinds, strict=True) if sum(rows) == n_rows}
    if len(fitting) == 1:
        return list(fitting.pop())
    if fitting:
        raise ValueError(
            f"features of {n_rows:,} rows can be those of nodes or of voxels of this graph, which "
            f"it divides differently: split them by hand, {' or '.join(map(str, sorted(fitting)))}"
        )
    sums = sorted({sum(rows) for rows in zip(*kinds, strict=True)})
    raise ValueError(
        f"the features have {n_rows:,} rows, but the graph has "
        f"{' or '.join(f'{number:,}' for number in sums)}: {graph!r}"
    )


def directions_of(
    outputs: Sequence[int], inputs: Sequence[int], longest: int, graph: object
) -> Sequence[int]:
    """The numbers of directions of rows padded to `longest`: those of the outputs, or the inputs'.

    Raises
    ------
    ValueError
        If neither is as long; it names the graph.
    """
    for counts in (outputs, inputs):
        if longest == max(counts):
            return counts
    raise ValueError(
        f"the features have {longest} directions, but the graph has {max(inputs)}: {graph!r}"
    )
