"""The floors of the library: a module imports from its own floor and from those below."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]

#: From the ground up.  What lies directly in `tripq/` offers names of other floors to users.
FLOORS = (
    "infra",
    "so3",
    "domain",
    "kernels",
    "filters",
    "backends",
    "nn",
    "scans",
    "networks",
    "simulate",
    "training",
    "report",
    "tasks",
    "commands",
)

MODULES = sorted([*ROOT.glob("tripq/**/*.py"), *ROOT.glob("kernels/**/*.py")])


def name_of(path: Path) -> str:
    """Dotted name of a module under which it is installed."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[0] == "kernels":
        parts.insert(0, "tripq")
    return ".".join(parts).removesuffix(".__init__")


@cache
def imports(path: Path) -> tuple[str, ...]:
    """Dotted names of the modules of tripq that a module imports, wherever it does."""
    return tuple(_imports(path))


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            modules = [node.module or ""]
            if node.module == "tripq":
                modules = [f"tripq.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        else:
            continue
        yield from (name for name in modules if name.split(".")[0] == "tripq")


def floor_of(module: str) -> int | None:
    """The floor of a module, from 0; None for the names that `tripq` itself offers."""
    parts = module.split(".")
    return FLOORS.index(parts[1]) if len(parts) > 1 and parts[1] in FLOORS else None


def test_every_folder_is_a_floor() -> None:
    folders = {p.name for p in (ROOT / "tripq").iterdir() if (p / "__init__.py").is_file()}
    assert folders | {"kernels"} == set(FLOORS)


def test_no_module_looks_up() -> None:
    above = [
        f"{name_of(path)} imports {name}"
        for path in MODULES
        for name in imports(path)
        if (floor := floor_of(name_of(path))) is not None and (floor_of(name) or 0) > floor
    ]
    assert not above, "\n".join(above)


def test_tasks_do_not_know_each_other() -> None:
    """A task is a folder; what all tasks have in common lies beside them, and knows none."""
    tasks = {f"tripq.tasks.{p.parent.name}" for p in ROOT.glob("tripq/tasks/*/__init__.py")}
    for path in MODULES:
        own = ".".join(name_of(path).split(".")[:3])
        if own.startswith("tripq.tasks"):
            others = [
                name
                for name in imports(path)
                if (task := ".".join(name.split(".")[:3])) in tasks and task != own
            ]
            assert not others, f"{name_of(path)} imports {others}"


def test_nothing_of_lesions_below_the_tasks() -> None:
    """A second task finds no word of the first one on the floors that it shares with it."""
    below = FLOORS[: FLOORS.index("tasks")]
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for floor in below
        for path in sorted(
            (ROOT / ("kernels" if floor == "kernels" else f"tripq/{floor}")).rglob("*")
        )
        if path.suffix in (".py", ".jinja", ".css", ".js") and "niivue" not in path.parts
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search("lesion", line, re.IGNORECASE)
    ]
    assert not found, "\n".join(found)
