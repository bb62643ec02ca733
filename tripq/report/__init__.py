"""Parts of pages: the file and its policy, charts, the sphere of directions, volumes.

A page is one HTML file that holds all it needs: styles, programs, pictures and volumes.  It asks
for nothing from any network, and its content security policy forbids the browser to.  Names, notes
and settings come from others and are shown as text, whatever is in them.
"""

from __future__ import annotations

from tripq.report.page import Picture, ReportError, make_picture, number, plural, write_page

__all__ = ["Picture", "ReportError", "make_picture", "number", "plural", "write_page"]
