"""Leave the source code on the API pages out of the search: it repeats every docstring."""

from __future__ import annotations

from typing import Any

_SOURCE = '<details class="mkdocstrings-source"'


def on_page_content(html: str, **_: Any) -> str:
    """Mark the source for Material's search plugin; a hook of MkDocs."""
    return html.replace(_SOURCE, f"{_SOURCE} data-search-exclude")
