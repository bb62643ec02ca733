"""What goes with a release: the Pythons, the workflow, the paper and the community files."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_one_list_of_pythons() -> None:
    """Classifiers, nox and the workflow name the same versions."""
    classifiers = re.findall(
        r'"Programming Language :: Python :: (3\.\d+)"', text("pyproject.toml")
    )
    (pythons,) = (
        ast.literal_eval(node.value)
        for node in ast.parse(text("noxfile.py")).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PYTHONS"
    )
    workflow = yaml.safe_load(text(".github/workflows/release.yml"))
    matrix = workflow["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert classifiers == list(pythons) == matrix
    assert f'requires-python = ">={classifiers[0]}"' in text("pyproject.toml")


def test_nothing_is_published_without_a_tag_and_the_tests() -> None:
    workflow = yaml.safe_load(text(".github/workflows/release.yml"))
    jobs = workflow["jobs"]
    assert jobs["publish"]["if"] == "startsWith(github.ref, 'refs/tags/v')"
    assert (jobs["publish"]["needs"], jobs["test"]["needs"]) == ("test", "build")
    assert workflow["permissions"] == {"contents": "read"}
    writing = {name for name, job in jobs.items() if "write" in job.get("permissions", {}).values()}
    assert writing == {"publish"}


def test_the_paper_cites_what_is_in_its_bibliography_and_shows_what_exists() -> None:
    paper = text("joss/paper.md")
    known = re.findall(r"^@\w+\{(\w+),", text("joss/paper.bib"), re.M)
    assert set(re.findall(r"\[@(\w+)\]", paper)) == set(known)
    assert len(known) == len(set(known))
    pictures = re.findall(r"\]\((\.\./[^)]+\.png)\)", paper)
    assert pictures
    assert all((ROOT / "joss" / picture).is_file() for picture in pictures)
    sections = set(re.findall(r"^# (.+)$", paper, re.M))
    assert sections >= {  # those that the journal requires
        "Summary",
        "Statement of need",
        "State of the field",
        "Software design",
        "Research impact statement",
        "AI usage disclosure",
    }
    header = yaml.safe_load(paper.split("---\n")[1])
    assert {"title", "tags", "authors", "affiliations", "date", "bibliography"} <= header.keys()


def test_figures_of_the_paper_are_those_of_the_documentation() -> None:
    """A number in the section on results has its source on a page that a program writes."""
    results = text("joss/paper.md").split("# Results and limits\n")[1]
    pages = " ".join((text("docs/experiment.md") + text("docs/real-heads.md")).split())
    numbers = re.findall(r"[+-]?\d+\.\d+", results)
    assert len(numbers) > 8
    assert [number for number in numbers if number not in pages] == []


@pytest.mark.parametrize("form", ["bug", "idea"])
def test_forms_of_issues_ask_for_what_is_needed(form: str) -> None:
    content = yaml.safe_load(text(f".github/ISSUE_TEMPLATE/{form}.yml"))
    assert content["name"]
    assert content["description"]
    first = content["body"][0]
    assert first["validations"]["required"] is True


@pytest.mark.parametrize("name", ["CODE_OF_CONDUCT.md", "CONTRIBUTING.md", "SUPPORT.md"])
def test_files_for_people_name_files_that_exist(name: str) -> None:
    assert all((ROOT / path).is_file() for path in re.findall(r"docs/[\w-]+\.md", text(name)))
