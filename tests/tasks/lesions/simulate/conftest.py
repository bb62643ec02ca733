from __future__ import annotations

from tests.simulate.conftest import anatomy, block, fine_anatomy, table

__all__ = ["anatomy", "block", "fine_anatomy", "table"]
