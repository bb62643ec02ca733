"""An operator is one call for a compiler, and its twin wherever torch needs plain torch."""

from __future__ import annotations

import ast
from pathlib import Path

import torch

from tripq.kernels.operators import operator

sum_of = operator(
    "test_sum",
    "(Tensor[] parts, float[] weight) -> Tensor",
    lambda parts, weight: torch.empty_like(parts[0]),
    twin=lambda parts, weight: torch.stack(parts).sum(0) @ torch.full((1, 1), weight),
    read=lambda parts, weight: (parts, *weight),
    keep=lambda ctx, inputs, output: setattr(ctx, "inputs", inputs),
    differentiate=lambda ctx, grad: (
        [grad * ctx.inputs[1][0] for _ in ctx.inputs[0]],
        None,
    ),
)


def test_an_operator_keeps_the_rules_of_torch():
    parts = [torch.randn(3, 1, requires_grad=True) for _ in range(2)]
    torch.library.opcheck(torch.ops.tripq.test_sum.default, (parts, [2.0]))


def test_what_is_returned_is_the_operator_or_its_twin():
    x = torch.randn(3, 1, requires_grad=True)
    assert sum_of([x, x], [2.0]).equal(4 * x)
    assert "test_sum" in sum_of([x], [2.0]).grad_fn.name()
    value, tangent = torch.func.jvp(lambda x: sum_of([x, x], [2.0]), (x,), (torch.ones(3, 1),))
    assert value.equal(4 * x)
    assert tangent.equal(torch.full((3, 1), 4.0)), "an operator would have none"


def test_a_twin_runs_outside_of_autocast():
    x = torch.full((3, 1), 1 + 2.0**-20)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert sum_of([x], [2.0]).equal(2 * x)


def test_kernels_take_groups_instead_of_many_arguments():
    """What belongs together is a tuple, such as `tripq.kernels.mixing_triton.Features`."""
    kernels = {
        f"{path.stem}.{node.name}": len(node.args.args)
        for path in Path(__file__).parents[2].glob("kernels/*_triton.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and "jit" in map(name_of, node.decorator_list)
    }
    assert len(kernels) > 10
    assert {name: number for name, number in kernels.items() if number > 16} == {}


def name_of(decorator):
    """The last name of a decorator, without its arguments."""
    return ast.unparse(decorator).partition("(")[0].rpartition(".")[2]
