"""``python -m tripq``: the command."""

from __future__ import annotations

from tripq.commands import run

run()
