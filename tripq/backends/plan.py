"""The choice of the back end that evaluates a filter, its reason and its cost.

For every back end that can run, the multiply-adds, the bytes and the working memory of a forward
pass follow from the sizes of the graph and the filter.  ``"auto"`` chooses the one with the
shortest time at the measured rates of the back ends; ``python perf/profile.py`` checks the choice.

A forward pass needs a `Plan`, which is made once and kept; `explain` describes it in words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from tripq.backends import BACKENDS
from tripq.backends.base import BackEnd, Request
from tripq.backends.precision import has_bfloat16
from tripq.domain.nodes import NodeSpace
from tripq.domain.qspace import QSpace
from tripq.domain.voxels import PEdges
from tripq.filters.filter import PQFilter
from tripq.infra.kept import kept_with_owners

Backend = Literal["auto", "edges", "dense", "fourier", "recoupled", "triton"]

#: Bytes in a nanosecond that a kind of device moves, as `BackEnd.rates`.
BANDWIDTH = {"cpu": 10.0, "cuda": 3_000.0}


@dataclass(frozen=True)
class Estimate:
    """Estimated cost of a forward pass by one back end.

    Attributes
    ----------
    backend : str
        Its name.
    operations : float
        Multiply-adds.
    bytes : float
        Read and written, if nothing stays in a cache between stages.
    peak_memory : float
        Bytes for features in, features out and working arrays, within the budget if it can.
    seconds : float
        At the rates of the back end and `BANDWIDTH`: to compare back ends with each other only.
    """

    backend: str
    operations: float
    bytes: float
    peak_memory: float
    seconds: float


@dataclass(frozen=True)
class Plan:
    """The back end that evaluates one filter on one scan.

    Attributes
    ----------
    chosen : Estimate
        What it will take.
    alternatives : tuple of Estimate
        The other back ends that could run, fastest first.
    """

    chosen: Estimate
    alternatives: tuple[Estimate, ...]

    @property
    def backend(self) -> str:
        """Name of the chosen back end."""
        return self.chosen.backend

    @property
    def operations(self) -> float:
        """Multiply-adds of a forward pass."""
        return self.chosen.operations

    @property
    def bytes(self) -> float:
        """Bytes that a forward pass moves."""
        return self.chosen.bytes

    @property
    def peak_memory(self) -> float:
        """Bytes that a forward pass holds."""
        return self.chosen.peak_memory

    @property
    def seconds(self) -> float:
        """Time at the rates of the cost model."""
        return self.chosen.seconds


@dataclass(frozen=True)
class PlanInWords(Plan):
    """A plan with its costs and alternatives, in words.

    Attributes
    ----------
    filter, scan : str
        What is evaluated.
    reason : str
        Why by this back end.
    impossible : dict of str to str
        Why those that are not among the alternatives cannot.
    """

    filter: str
    scan: str
    reason: str
    impossible: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{self.filter} on {self.scan}: {self.backend}, {self.reason}"]
        for e in (self.chosen, *self.alternatives):
            lines.append(
                f"  {e.backend:<9} {_number(e.operations)} multiply-adds, {_size(e.bytes)} moved, "
                f"{_size(e.peak_memory)} held"
            )
        lines += [f"  {name:<9} cannot: {why}" for name, why in self.impossible.items()]
        return "\n".join(lines)


@dataclass(frozen=True)
class Explanation:
    """The plans of a layer on a graph, one for each scan and filter."""

    plans: tuple[PlanInWords, ...]

    def __str__(self) -> str:
        return "\n".join(str(plan) for plan in self.plans)


def make_plan(backend: Backend, request: Request) -> Plan:
    """Choose a back end.  A plan is kept: the same request has the same one.

    Raises
    ------
    ValueError
        If `backend` names one that cannot evaluate the request; the message says why.
    """
    plan: Plan = _kept_plan(
        request.edges,
        request.filter,
        request.q,
        request.dtype,
        request.device,
        request.budget,
        request.differentiated_p,
        request.differentiated_q,
        request.bfloat16,
        backend,
    )
    return plan


@kept_with_owners
def _kept_plan(
    edges: PEdges,
    filter: PQFilter,
    q: QSpace | NodeSpace,
    dtype: torch.dtype,
    device: torch.device,
    budget: int,
    differentiated_p: bool,
    differentiated_q: bool,
    bfloat16: bool,
    backend: Backend,
) -> Plan:
    """A plan, kept as long as scan and filter exist; it holds only numbers."""
    request = Request(
        edges, filter, q, dtype, device, budget, differentiated_p, differentiated_q, bfloat16
    )
    if backend != "auto" and (why := BACKENDS[backend].obstacle(request)) is not None:
        raise ValueError(
            f'the {backend!r} back end cannot run here: {why}. backend="auto" chooses one that can'
        )
    estimates = sorted(
        (
            _estimate(back_end, request)
            for back_end in BACKENDS.values()
            if _why_not(back_end, request, backend) is None
        ),
        key=lambda e: e.seconds,
    )
    chosen = next(e for e in estimates if backend in ("auto", e.backend))
    return Plan(chosen, tuple(e for e in estimates if e is not chosen))


def _why_not(back_end: BackEnd, request: Request, asked: Backend) -> str | None:
    """The reason why a back end is not ranked, or None."""
    if back_end.needs_gpu and not request.on_gpu and back_end.name != asked:
        return "its kernels need a CUDA device"
    return back_end.obstacle(request)


def _estimate(back_end: BackEnd, request: Request) -> Estimate:
    device = "cuda" if request.on_gpu else "cpu"
    work, item = back_end.cost(request), request.itemsize
    moved = (work.moved + request.features) * item
    held = (work.whole + request.features) * item + min(work.held * item, request.budget)
    rate = back_end.rates[device]
    if request.bfloat16 and has_bfloat16(device):
        rate = back_end.rates.get(f"{device}, bfloat16", rate)
    seconds = work.operations / rate + moved / BANDWIDTH[device]
    return Estimate(back_end.name, work.operations, moved, held, seconds / 1e9)


# -- words ---------------------------------------------------------------------------------------


def explain(backend: Backend, request: Request) -> PlanInWords:
    """The plan for a request, in words; raises as `make_plan`."""
    plan = make_plan(backend, request)
    reasons = {name: _why_not(b, request, backend) for name, b in BACKENDS.items()}
    return PlanInWords(
        plan.chosen,
        plan.alternatives,
        filter=f'"{request.filter.kind}"',
        scan=_described(request),
        reason=_reason(backend, plan, request),
        impossible={name: why for name, why in reasons.items() if why is not None},
    )


def _described(request: Request) -> str:
    if request.nodes:
        return f"{request.n_voxels:,} nodes with {request.n_edges:,} edges"
    return (
        f"{request.n_voxels:,} voxels with {request.n_edges / max(1, request.n_voxels):.0f} "
        f"neighbours, {request.n_in} directions to {request.n_out}"
    )


def _reason(backend: Backend, plan: Plan, request: Request) -> str:
    if backend != "auto":
        if BACKENDS[backend].needs_gpu and not request.on_gpu:
            return "as requested (without a CUDA device its operators run in plain torch)"
        return "as requested"
    reason = "the fastest by the cost model"
    if plan.alternatives and plan.seconds > 0:
        second = plan.alternatives[0]
        reason += f" ({second.seconds / plan.seconds:.1f} times {second.backend})"
    return reason


def _number(value: float) -> str:
    for unit, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g} {name}"
    return f"{value:.0f}"


def _size(value: float) -> str:
    return _number(value) + "B" if value >= 1e3 else f"{value:.0f} B"
