"""Pages to look at: of one subject, of a group, of an evaluation.

Each is one HTML file that holds all it needs: styles, programs, pictures and volumes. It asks for
nothing from any network, and its content security policy forbids the browser to. Names, notes and
settings are text of others and are shown as text, whatever is in them.

>>> from tripq.tasks.lesions.pages.subject import write_subject_report
"""

from __future__ import annotations

from tripq.report.page import ReportError
from tripq.tasks.lesions.pages.evaluation import EvaluatedSubject, write_evaluation_report
from tripq.tasks.lesions.pages.group import SubjectSummary, write_group_report
from tripq.tasks.lesions.pages.subject import write_subject_report

__all__ = [
    "EvaluatedSubject",
    "ReportError",
    "SubjectSummary",
    "write_evaluation_report",
    "write_group_report",
    "write_subject_report",
]
