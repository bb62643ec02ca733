"""Puts this folder at the end of the path of modules, by being imported first.

Torch imports the standard library's `profile`, which perf/profile.py would hide.  At the end of the
path, this folder still gives the modules beside a program.
"""

from __future__ import annotations

import sys
from pathlib import Path

_HERE = Path(__file__).parent.resolve()
sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != _HERE] + [str(_HERE)]
