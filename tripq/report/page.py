"""Common parts of pages: the file, templates, styles, programs and the security policy.

The content security policy (https://www.w3.org/TR/CSP3) of a page allows exactly the styles and
programs that this module put there, by their SHA-256, and no network requests.
"""

from __future__ import annotations

import hashlib
import io
import math
import platform
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from tripq.infra.files import replacing

CAUTION = "caution"
"""Name of the setting that is shown at the top of a page, in upper or lower case, such as the
training data of a network."""

SUFFIXES = (".html", ".htm")
"""Names of pages."""

_PACKAGES = ("tripq", "torch", "e3nn", "numpy", "scipy", "nibabel")
_DPI = 200
_PICTURE_TYPES = {"png": "image/png", "svg": "image/svg+xml"}


class ReportError(ValueError):
    """A page cannot be written; the message says why."""


@dataclass(frozen=True)
class Picture:
    """A picture inside a page.

    Attributes
    ----------
    source : str
        ``data:`` address.
    alternative : str
        What it shows, in words.
    width, height : int
        In the pixels of a page, 96 to the inch.
    """

    source: str
    alternative: str
    width: int
    height: int


def make_picture(figure: Figure, alternative: str, kind: Literal["svg", "png"] = "svg") -> Picture:
    """Draw a figure: ``svg`` for lines and words, ``png`` for slices of a scan."""
    data = io.BytesIO()
    figure.savefig(data, format=kind, dpi=_DPI)
    width, height = (round(96 * inches) for inches in figure.get_size_inches())
    source = f"data:{_PICTURE_TYPES[kind]};base64,{b64encode(data.getvalue()).decode()}"
    return Picture(source, alternative, width, height)


def write_page(
    path: str | PathLike[str],
    template: str,
    *,
    package: str = __package__,
    settings: Mapping[str, str],
    programs: Sequence[str] = ("assets/sort.js",),
    **content: Any,
) -> None:
    """Write a page under a temporary name and then move it, so no partial page is left.

    Parameters
    ----------
    path : path
        ``.html``; an existing page is replaced.
    template : str
        Name of the template.
    package : str
        Package with the template in its folder ``templates``; those of this package are always
        found.
    settings : mapping of str to str
        Settings that determine the result, shown as they are; each line of `CAUTION` is shown at
        the top.
    programs : sequence of str
        JavaScript files of this package, in the order in which they run.
    **content
        For the template.

    Raises
    ------
    ReportError
        If the name is not that of a page, or nothing can be written there.
    """
    target = Path(path)
    if target.suffix.lower() not in SUFFIXES:
        raise ReportError(f"{target}: not the name of a page ({' or '.join(SUFFIXES)}).")
    style = _read("assets/style.css")
    scripts = [_read(name) for name in programs]
    text = (
        _environment(package)
        .get_template(template)
        .render(
            policy=_policy(style, scripts),
            style=Markup(style),
            scripts=[Markup(script) for script in scripts],
            cautions=[
                line
                for name, value in settings.items()
                if _is_caution(name)
                for line in value.splitlines()
                if line.strip()
            ],
            settings={name: value for name, value in settings.items() if not _is_caution(name)},
            versions=_versions(),
            written=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
            **content,
        )
    )
    try:
        with replacing(target) as part:
            # Names of files can hold bytes that are no text; they are shown as question marks.
            part.write_bytes(text.encode("utf-8", errors="replace"))
    except OSError as error:
        raise ReportError(f"{target}: cannot be written: {error.strerror or error}.") from error


def number(value: float | None, decimals: int) -> str:
    """A number for readers: with a typographic minus sign, and a dash for missing values.

    >>> number(-12.34, 1), number(1234.5, 2), number(math.nan, 3), number(None, 3)
    ('−12.3', '1,234.50', '–', '–')
    """
    if value is None or math.isnan(value):
        return "–"
    text = f"{value:,.{decimals}f}"
    return text.replace("-", "−") if float(text.replace(",", "")) else text.replace("-", "")


def plural(count: int, noun: str) -> str:
    """A count and its noun.

    >>> plural(1, "voxel"), plural(2000, "voxel")
    ('1 voxel', '2,000 voxels')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


@cache
def _versions() -> dict[str, str]:
    """Versions of the packages that a page depends on, by name; they are searched for once."""
    found = {name: version(name) for name in _PACKAGES}
    return {**found, "Python": platform.python_version()}


def _is_caution(setting: str) -> bool:
    return setting.casefold() == CAUTION


def _policy(style: str, scripts: Sequence[str]) -> str:
    """The content security policy of a page with this style and these scripts alone."""
    return "; ".join(
        [
            "default-src 'none'",
            "img-src data:",
            f"style-src {_hash(style)}",
            f"script-src {' '.join(map(_hash, scripts))}",
            "connect-src data:",  # the viewer reads its fonts from data
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@cache
def _read(name: str) -> str:
    """A file of this package, with the line ends that browsers hash."""
    text = files(__package__).joinpath(name).read_text(encoding="utf-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


@cache
def _environment(package: str) -> Environment:
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader(__package__)]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    environment.filters["plural"] = plural
    return environment
