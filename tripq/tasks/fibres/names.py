"""Names and sidecars of the maps: orientation distributions and peaks.

Both are those of BIDS extension proposal 16 (diffusion derivatives).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tripq.scans.bids import model_map

FODF, PEAKS = (model_map("fibres", parameter) for parameter in ("fodf", "peaks"))
"""Endings of the names of maps of orientation distributions and of peaks."""


def describe_fodf(n_coefficients: int, model: Mapping[str, Any]) -> dict[str, Any]:
    """The sidecar of a map of orientation distributions.

    Parameters
    ----------
    n_coefficients : int
        Number of its volumes.
    model : mapping
        What it comes from.

    Examples
    --------
    >>> described = describe_fodf(45, {"Description": "truth"})
    >>> described["OrientationEncoding"]["SphericalHarmonicDegree"]
    8
    """
    from tripq.so3.mrtrix import highest_order  # imports torch, which no command needs for names

    return {
        "Description": "Fibre orientation distributions: the integral over the sphere is the "
        "fraction of white matter.",
        "Model": dict(model),
        "OrientationEncoding": {
            "EncodingAxis": 3,
            "Reference": "xyz",
            "Type": "sh",
            "AntipodalSymmetry": True,
            "SphericalHarmonicBasis": "mrtrix3",
            "SphericalHarmonicDegree": highest_order(n_coefficients),
        },
    }


def describe_peaks(model: Mapping[str, Any]) -> dict[str, Any]:
    """The sidecar of a map of peaks, three vectors in nine volumes."""
    return {
        "Description": "Three fibre directions of a voxel, x, y and z of each in world axes "
        "(RAS+), the largest first; zeros for missing ones.",
        "Model": dict(model),
        "OrientationEncoding": {
            "EncodingAxis": 3,
            "Reference": "xyz",
            "Type": "3vector",
            "AntipodalSymmetry": True,
            "FillValue": 0,
        },
    }
