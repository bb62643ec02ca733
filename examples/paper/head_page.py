"""The page about the network of tripq in real heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from study.pages import table, write_between

from paper.head_tests import (
    BINS,
    MILDEST,
    SMALLEST,
    THRESHOLDS,
    Healthy,
    Implanted,
    Simulated,
    Tests,
    pooled_average_precision,
    pooled_calibration_error,
)
from paper.recipes import EQUIVARIANT, RECIPES, Recipe
from paper.repeats import Repeat


def found_in_healthy_heads(tests: Tests) -> str:
    """False positives in a sentence, for the page of every scan.

    The network that ships has seen all of these heads.  Therefore the sentence is about those that
    were trained without a person and their scanner.
    """
    volumes = [row.ml for row in tests.healthy]
    people = len({row.person for row in tests.healthy})
    return (
        f"In {len(volumes)} scans of {people} healthy people, networks trained like this one, but "
        f"without the person and the scanner, marked a median of "
        f"{median_of_people(tests.healthy, volumes):.2f} ml over the people, at most "
        f"{max(volumes):.2f} ml in a scan."
    )


def median_of_people(rows: Sequence[Healthy], volumes: Sequence[float]) -> float:
    """Median over the people of the mean volume of each one's scans.

    Some people have many scans, and would otherwise decide the median.
    """
    of_people: dict[str, list[float]] = {}
    for row, volume in zip(rows, volumes, strict=True):
        of_people.setdefault(row.person, []).append(volume)
    return float(np.median([np.mean(some) for some in of_people.values()]))


def count_found(rows: Sequence[Implanted]) -> tuple[int, int]:
    """How many implanted lesions were found, and of how many."""
    return sum(row.found for row in rows), sum(row.lesions for row in rows)


def summary(tests: Tests) -> str:
    """The results in sentences."""
    found, lesions = count_found(tests.implanted)
    return (
        f"{found_in_healthy_heads(tests)} Of {lesions} implanted lesions above {SMALLEST:g} ml "
        f"with a severity of {MILDEST:g} or more they found {found} "
        f"({found / max(lesions, 1):.0%})."
    )


def healthy_table(rows: Sequence[Healthy]) -> str:
    """False positives."""
    heads = "scan | scanner | voxels, mm | directions | spots | ml | spots, 2 mm | ml, 2 mm | r"
    return table(
        heads,
        (
            f"{row.head} | {row.scanner} | {row.voxels} | {row.shells} | {row.spots} | "
            f"{row.ml:.2f} | {row.spots_resampled} | {row.ml_resampled:.2f} | "
            f"{row.correlation:.2f}"
            for row in rows
        ),
    )


def implanted_table(rows: Sequence[Implanted], simulated: Sequence[Simulated]) -> str:
    """Scores on implanted lesions beside those of the same network on simulated scans."""
    own = {row.person: row for row in simulated}
    people = list(dict.fromkeys(row.person for row in rows))
    lines = []
    for person in people:
        some = [row for row in rows if row.person == person]
        found, lesions = count_found(some)
        precision = pooled_average_precision(some)
        usual = own[person].average_precision
        lines.append(
            f"{person} | {len(some)} | {found} of {lesions} | {precision:.3f} | {usual:.3f} | "
            f"{precision / usual:.2f} | {np.mean([r.average_precision for r in some]):.3f} | "
            f"{np.mean([r.dice for r in some]):.3f} | {pooled_calibration_error(some):.4f}"
        )
    heads = "person | subjects | lesions found | average precision | simulated | ratio | mean "
    heads += "average precision | mean Dice | calibration error"
    return table(heads, lines)


def reliability_table(rows: Sequence[Implanted]) -> str:
    """The reliability curve over all voxels with implanted lesions."""
    voxels, sick = (
        np.sum([getattr(r, n) for r in rows], axis=0) for n in ("voxels", "lesion_voxels")
    )
    total = np.sum([np.multiply(r.voxels, r.probability) for r in rows], axis=0)
    return table(
        "probability | voxels | mean probability | share of lesion voxels",
        (
            f"{low:.1f} to {high:.1f} | {n:,} | {p / max(n, 1):.3f} | {s / max(n, 1):.3f}"
            for low, high, n, p, s in zip(BINS[:-1], BINS[1:], voxels, total, sick, strict=True)
        ),
    )


def thresholds_table(tests: Tests) -> str:
    """False positives and lesions found at several thresholds."""
    lines = []
    for number, threshold in enumerate(THRESHOLDS):
        volumes = [row.ml_at[number] for row in tests.healthy]
        found = sum(row.found_at[number] for row in tests.implanted)
        lesions = sum(row.lesions for row in tests.implanted)
        lines.append(
            f"{threshold:g} | {median_of_people(tests.healthy, volumes):.2f} | "
            f"{max(volumes):.2f} | {found} of {lesions}"
        )
    return table(
        "threshold | marked in a healthy head, median of the people, ml | at most in a scan, ml | "
        "implanted lesions found",
        lines,
    )


def repeats_table(rows: Sequence[Repeat]) -> str:
    """Agreement of repeated scans."""
    return table(
        "scan | compared with | difference | angle, degrees | correlation of the logits",
        (
            f"{row.again} | {row.head} | {row.says} | {row.angle:.0f} | {row.correlation:.2f}"
            for row in rows
        ),
    )


def people_table(tests: Tests) -> str:
    """One line for each person: false positives, and implanted lesions that were found."""
    lines = []
    for person in dict.fromkeys(row.person for row in tests.healthy):
        healthy = [row for row in tests.healthy if row.person == person]
        implanted = [row for row in tests.implanted if row.person == person]
        volumes = [row.ml for row in healthy]
        marked = " to ".join(f"{v:.2f}" for v in sorted({min(volumes), max(volumes)}))
        found, lesions = count_found(implanted)
        precision = pooled_average_precision(implanted)
        lines.append(
            f"{healthy[0].scanner} | {len(healthy)} | {marked} | {found} of {lesions} | "
            f"{precision:.3f}"
        )
    return table(
        "scanner | scans | marked in the healthy head, ml | implanted lesions found | average "
        "precision",
        lines,
    )


def networks_table(networks: Mapping[Recipe, Tests]) -> str:
    """A line for each network: false positives, and implanted lesions that were found."""
    lines = []
    for recipe in RECIPES.values():
        if recipe not in networks:
            lines.append(f"{recipe.says} | not yet run |  |  |  |  | ")
            continue
        tests = networks[recipe]
        volumes = [row.ml for row in tests.healthy]
        found, lesions = count_found(tests.implanted)
        precisions = [
            pooled_average_precision([row for row in tests.implanted if row.person == person])
            for person in dict.fromkeys(row.person for row in tests.implanted)
        ]
        simulated = np.mean([row.average_precision for row in tests.simulated])
        lines.append(
            f"{recipe.says} | {median_of_people(tests.healthy, volumes):.2f} | "
            f"{max(volumes):.2f} | "
            f"{found} of {lesions} | {np.mean(precisions):.3f} "
            f"({min(precisions):.3f} to {max(precisions):.3f}) | {simulated:.3f} | "
            f"{pooled_calibration_error(tests.implanted):.4f}"
        )
    return table(
        "network | marked in a healthy head, median of the people, ml | at most in a scan, ml | "
        "implanted lesions found | "
        "average precision, mean of the people (lowest to highest) | simulated | calibration error",
        lines,
    )


def write_page(networks: Mapping[Recipe, Tests], page: Path) -> None:
    """Put the tables into the page about real heads; rivals have a line each."""
    tests = networks[EQUIVARIANT]
    tables = {
        "summary": summary(tests),
        "healthy": healthy_table(tests.healthy),
        "thresholds": thresholds_table(tests),
        "implanted": implanted_table(tests.implanted, tests.simulated),
        "networks": networks_table(networks),
        "repeats": repeats_table(tests.repeats),
        "reliability": reliability_table(tests.implanted),
    }
    write_between(page, tables)
