"""Settings and fixtures for all tests."""

from __future__ import annotations

import atexit
import gc
import os
import runpy
import shutil
import signal
import sys
import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from _pytest.doctest import DoctestModule
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from selenium.webdriver.chrome.webdriver import WebDriver
    from typer import Typer

    from tripq.simulate import Anatomy

if "PYTEST_XDIST_WORKER" in os.environ:
    # One thread for each worker; read by torch and BLAS when they are first imported.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell that starts pytest in the background ignores Ctrl-C; all that the tests start would, too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Compiling an e3nn module can take a second: neither deadlines nor the speed of drawing tell much.
settings.register_profile(
    "ci",
    max_examples=8,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
# `make test-all`
settings.register_profile("all", settings.get_profile("ci"), max_examples=25)
settings.register_profile(
    "thorough", settings.get_profile("ci"), max_examples=500, derandomize=False, print_blob=True
)
# `make fuzz`, for tests/trust/test_fuzz.py
settings.register_profile("fuzz", settings.get_profile("thorough"), max_examples=1000)
settings.load_profile("ci")


ROOT = Path(__file__).parents[1]

CHROMIUM = tuple(map(shutil.which, ("chromium", "chromedriver")))


def has_cuda() -> bool:
    """Tell whether torch sees a CUDA device."""
    import torch

    return torch.cuda.is_available()


def has_chromium() -> bool:
    """Tell whether there are Chromium and its driver."""
    return None not in CHROMIUM


NEEDS = {"gpu": has_cuda, "browser": has_chromium}


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Let the garbage collector look through new objects only.

    Modules and tests stay to the end, and to look through them again and again takes seconds.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()
        # At the end of the process all is collected: bindings of some libraries report what is not.
        # Not before: pytest collects several times, seconds each.
        atexit.register(gc.unfreeze)


@pytest.hookimpl(wrapper=True)
def pytest_collect_file() -> Generator[None, list[pytest.Collector], list[pytest.Collector]]:
    """Look for no examples in the docstrings of tests: there are none, and it takes seconds."""
    return [found for found in (yield) if not isinstance(found, DoctestModule)]


def pytest_collection_finish() -> None:
    """Make the tests faster without a change of what they compute."""
    if "torch" in sys.modules:
        remember_contractions()


def remember_contractions() -> None:
    """Keep the orders of contractions that `torch.einsum` searches for in every call.

    The search takes a millisecond, and a quarter of the time of a layer of a few voxels.
    """
    from torch import Tensor
    from torch.backends import opt_einsum

    module = opt_einsum.get_opt_einsum()
    if module is None:
        return
    search, found = module.contract_path, {}

    def contract_path(equation: str, *operands: Any, **options: Any) -> Any:
        if not all(isinstance(operand, Tensor) for operand in operands):
            return search(equation, *operands, **options)
        sizes = [tuple(operand.shape) for operand in operands]
        if any(type(size) is not int for shape in sizes for size in shape):
            return search(equation, *operands, **options)  # symbols of a compiler
        key = equation, *sizes, *options.items()
        if key not in found:
            found[key] = search(equation, *operands, **options)
        return found[key]

    module.contract_path = contract_path


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests marked ``gpu`` or ``browser`` where there is none."""
    for marker, is_there in NEEDS.items():
        marked = [item for item in items if item.get_closest_marker(marker)]
        if marked and not is_there():
            config.hook.pytest_deselected(items=marked)
            items[:] = [item for item in items if item not in marked]


def pytest_report_header() -> str:
    """Say whether the tests in a browser run."""
    if has_chromium():
        return f"browser: {CHROMIUM[0]}"
    return "browser: no chromium and chromedriver: the tests marked browser are left out"


@pytest.fixture(scope="session")
def fine_anatomy() -> Anatomy:
    """The default anatomy in voxels of 2 mm: it takes seconds, once for all that need it."""
    from tripq.simulate import default_anatomy

    return default_anatomy(2.0)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebDriver]:
    """Start Chromium without a screen and without a graphics card."""
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    program, driver = CHROMIUM
    options = ChromeOptions()
    options.binary_location = program
    for argument in (
        *("headless", "no-sandbox", "disable-gpu-sandbox", "no-first-run"),
        *("disable-background-networking", "disable-component-update", "disable-sync"),
        *("use-gl=angle", "use-angle=swiftshader", "enable-unsafe-swiftshader"),
        *("window-size=800,700", f"user-data-dir={tmp_path_factory.mktemp('chromium')}"),
    ):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chromium = Chrome(options=options, service=Service(driver))
    yield chromium
    chromium.quit()


FEW_SETTLING = 3


@pytest.fixture
def few_settling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settle batch norms over few batches: else this takes most of the time of a short training."""
    monkeypatch.setattr("tripq.training.module.N_SETTLING", FEW_SETTLING)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the pictures of pages empty: to draw them takes most of the time of a page."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *_, **__: None)


@cache
def built(app: Typer) -> Any:
    """The commands of an application, which `typer.testing` would build for each of its calls."""
    from typer.main import get_command

    return get_command(app)


@contextmanager
def importable(folder: str) -> Iterator[None]:
    """Modules of a folder of the repository, as for its programs; they hide no others."""
    before = sys.path[:]
    sys.path.append(str(ROOT / folder))
    try:
        yield
    finally:
        sys.path[:] = before


@pytest.fixture(scope="module")
def perf_modules() -> Iterator[None]:
    """Let the modules beside the programs of perf/ be imported."""
    with importable("perf"):
        yield


def run_program(path: Path, *arguments: object) -> str:
    """What a program prints, run in this process: one of its own would import everything again.

    What Python would tell of on stderr is an error.
    """
    with (
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(StringIO()) as shown,
        warnings.catch_warnings(),
    ):
        for category in (UserWarning, RuntimeWarning, FutureWarning):
            warnings.simplefilter("error", category)
        patch.setattr(sys, "argv", [str(path), *map(str, arguments)])
        patch.syspath_prepend(path.parent)
        try:
            runpy.run_path(str(path), run_name="__main__")
        except SystemExit as end:
            if end.code:
                raise
    return shown.getvalue()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of real scans: $TRIPQ_TEST_DATA, or shared/data beside the repository."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("TRIPQ_TEST_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"real scans: no folder {folder} (TRIPQ_TEST_DATA names another one)")
    return folder
