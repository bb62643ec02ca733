"""Parts of pages: the file and its policy, charts, the sphere of directions, volumes.

A page is one HTML file with all its styles, programs, pictures and volumes.  It makes no network
requests, and its content security policy forbids them.  Names, notes and settings are untrusted and
are shown as text.
"""

from __future__ import annotations

from tripq.report.page import Picture, ReportError, make_picture, number, plural, write_page

__all__ = ["Picture", "ReportError", "make_picture", "number", "plural", "write_page"]
