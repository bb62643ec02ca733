"""Imports: each program loads the libraries that it uses, when it uses them."""

from __future__ import annotations

import subprocess
import sys

SLOW = (
    "dipy",
    "jinja2",
    "lightning",
    "matplotlib",
    "nibabel",
    "nilearn",
    "pydantic",
    "scipy",
    "sklearn",
    "torch._dynamo",
    "torchmetrics",
    "triton",
)
"""Packages that take more than a tenth of a second, of which a network needs none."""


def loaded_by(program: str) -> set[str]:
    """Modules that a program has loaded at its end."""
    shown = subprocess.run(
        [sys.executable, "-c", f"{program}\nimport sys\nprint('loaded', *sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return set(shown.rpartition("loaded ")[2].split())


def test_networks_load_torch_and_no_other_slow_package() -> None:
    """Including their construction: Dynamo, for compiling, takes longer to load than torch."""
    loaded = loaded_by("import tripq.models\ntripq.models.LesionSegmenter(p_radius=4.0)")
    assert "torch" in loaded
    assert not loaded & set(SLOW)
