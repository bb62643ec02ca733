"""Names and sidecars of the maps, as in BIDS extension proposal 16 (diffusion derivatives)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tripq.scans.bids import model_map

FA, MD = (model_map("tensor", parameter) for parameter in ("fa", "md"))
"""Endings of the names of the maps of the diffusion tensor."""

UNIT_OF_MD = "mm²/s"


def describe_tensor() -> Mapping[str, Mapping[str, Any]]:
    """The sidecars of the maps of the diffusion tensor, by the endings of their names.

    Examples
    --------
    >>> sorted(describe_tensor())
    ['model-tensor_param-fa_dwimap.json', 'model-tensor_param-md_dwimap.json']
    """
    model = {
        "Description": "Diffusion tensor of the predicted signal",
        "Parameters": {"FitMethod": "ols"},
    }
    return {
        f"{FA}.json": {"Description": "Fractional anisotropy", "Model": model},
        f"{MD}.json": {"Description": "Mean diffusivity", "Model": model, "Units": "mm^2/s"},
    }
