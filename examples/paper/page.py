"""placeholder"""

from __future__ import annotations


def write_page(out, results, experiment): ...
