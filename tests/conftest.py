"""Settings and fixtures for all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

if "PYTEST_XDIST_WORKER" in os.environ:
    # One thread for each worker; read by torch and BLAS when they are first imported.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Compiling an e3nn module can take a second: neither deadlines nor the speed of drawing tell much.
settings.register_profile(
    "ci",
    max_examples=25,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "thorough", settings.get_profile("ci"), max_examples=500, derandomize=False, print_blob=True
)
settings.load_profile("ci")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests marked ``gpu`` where torch sees no CUDA device."""
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not on_gpu:
        return
    import torch

    if not torch.cuda.is_available():
        config.hook.pytest_deselected(items=on_gpu)
        items[:] = [item for item in items if item not in on_gpu]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of real scans: $TRIPQ_TEST_DATA, or shared/data beside the repository."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("TRIPQ_TEST_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"real scans: no folder {folder} (TRIPQ_TEST_DATA names another one)")
    return folder
