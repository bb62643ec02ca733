from __future__ import annotations

from tests.simulate.conftest import anatomy, block, table

__all__ = ["anatomy", "block", "table"]
