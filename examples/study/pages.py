"""Tables in Markdown, and pages with markers for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path


def table(heads: str, lines: Iterable[str]) -> str:
    """A table in Markdown; cells are divided by ` | `."""
    return "\n".join(
        [
            f"| {heads} |",
            "|" + " --- |" * (heads.count("|") + 1),
            *(f"| {line} |" for line in lines),
        ]
    )


def write_between(page: Path, texts: Mapping[str, str]) -> None:
    """Replace the texts between the markers of a page, given by the names of the markers."""
    content = page.read_text(encoding="utf-8")
    for name, text in texts.items():
        before, begin, rest = content.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"\n<!-- end of {name} -->")
        if not (begin and end):
            raise ValueError(f"{page}: no markers of {name}")
        content = before + begin + text + end + after
    page.write_text(content, encoding="utf-8")
