r"""Docstrings as the site needs them: the reStructuredText in them as Markdown, names as links.

Docstrings of tripq follow numpydoc, which writes formulas as ``:math:`` and ``.. math::``, literal
blocks with ``::``, and names of other objects between single backticks. mkdocstrings takes them for
Markdown. This extension of Griffe, which reads the code for mkdocstrings, translates.
"""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import dedent
from typing import Any

import griffe

_FORMULA = re.compile(r":math:`([^`]+)`")
_DISPLAY = re.compile(r"^( *)\.\. math::[ ]?(.*(?:\n(?:\1 +.*|[ ]*(?=\n\1 )))*)", re.MULTILINE)
_LITERAL = re.compile(r"(?<=[^\s:.])::$", re.MULTILINE)
_EXAMPLES = re.compile(r"^ *Examples\n *-----", re.MULTILINE)
_DOCTEST = re.compile(r"^>>> (?:.+\n?)+", re.MULTILINE)
_NAME = re.compile(r"(?<!`)`([A-Za-z_][\w.]*)`(?![`_])")


def to_markdown(text: str) -> str:
    r"""Formulas, literal blocks, and doctests outside a section of examples, in Markdown.

    >>> to_markdown("The sum :math:`a + b` is::")
    'The sum \\(a + b\\) is:'
    >>> print(to_markdown(".. math::\n    a + b\n\nNext."))
    \[
    a + b
    \]
    <BLANKLINE>
    Next.
    >>> to_markdown("A sum:\n\n>>> 1 + 1\n2")
    'A sum:\n\n```pycon\n>>> 1 + 1\n2\n```'
    """
    text = _DISPLAY.sub(_display, text)
    text = _FORMULA.sub(lambda match: rf"\({match[1]}\)", text)
    text = _LITERAL.sub(":", text)
    if _EXAMPLES.search(text):  # mkdocstrings finds the doctests in that section itself
        return text
    return _DOCTEST.sub(lambda match: f"```pycon\n{match[0].rstrip()}\n```\n", text).rstrip()


def _display(match: re.Match[str]) -> str:
    first, _, rest = match[2].partition("\n")
    lines = [line for line in (first.strip(), *dedent(rest).strip().splitlines()) if line]
    if any(line.endswith(r"\\") for line in lines):  # numpydoc aligns lines at & by itself
        lines = [r"\begin{aligned}", *lines, r"\end{aligned}"]
    return "\n".join(match[1] + line for line in (r"\[", *lines, r"\]"))


class Docstrings(griffe.Extension):
    """Translates every docstring of a package once all of it is read."""

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **_: Any) -> None:
        """Add ``kernels/``, which is installed as ``tripq.kernels``, and translate."""
        if pkg.name != "tripq":
            return
        if "kernels" not in pkg.members:  # unless a link stands for it
            folder = Path(__file__).parents[2] / "kernels"
            pkg.set_member("kernels", loader.load(folder))
        for obj in _walk(pkg):
            if obj.docstring is not None:
                text = to_markdown(obj.docstring.value)
                obj.docstring.value = _NAME.sub(lambda m, o=obj: _link(m, o, pkg), text)


def _walk(obj: griffe.Object) -> list[griffe.Object]:
    members = [m for m in obj.members.values() if isinstance(m, griffe.Object)]
    return [obj, *(found for member in members for found in _walk(member))]


def _link(match: re.Match[str], obj: griffe.Object, pkg: griffe.Module) -> str:
    """A name as a link, if it is that of something with a place in the API pages."""
    name = match[1]
    try:
        path = name if name.startswith(f"{pkg.name}.") else obj.resolve(name)
        target = pkg.modules_collection[path]
        if target.is_alias:
            target = target.final_target
    except (KeyError, griffe.GriffeError):
        return match[0]
    known = target.path.startswith(f"{pkg.name}.") and "._" not in target.path
    if not known or not target.has_docstring or target is obj:
        return match[0]
    return f"[`{name}`][{target.path}]"
