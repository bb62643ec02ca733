"""Pages with markers, between which programs write."""

from __future__ import annotations


def between(page: str, begin: str, end: str, text: str) -> str:
    """A page with other text between two markers."""
    before, found, rest = page.partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found and found_end):
        raise ValueError(f"no {begin.strip()} with {end.strip()} in the page")
    return before + begin + text + end + after
