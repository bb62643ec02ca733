"""The page of the experiment, and its figures: every number from the results."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from paper import figures, statistics
from paper.baselines import BASELINES
from paper.plan import (
    COARSE,
    FINE,
    FULL,
    MORE_HEADS,
    MORE_TABLES,
    OTHER_TABLES,
    ROTATED,
    SMALL_LOAD,
    SUBSETS,
    USUAL,
    Condition,
)
from paper.results import Result, Results, Run, SubjectResult
from paper.schedule import (
    CONTENDERS,
    Experiment,
    candidates,
    chosen,
    main_runs,
    other_runs,
    tuning_runs,
)
from paper.statistics import Estimate, Score

#: A split is counted where both are done.
COMPARED = ("equivariant", "reference")

#: Families of this project; the others are rivals.
OURS = ("equivariant", "equivariant, sums")

Subjects = list[list[SubjectResult]]

#: Endings of the names of tests on changed scans.
SUFFIXES = ("", ", resampled", ", trained shell")

#: Notes on the interpretation, independent of the numbers.
READING = Path(__file__).parent / "experiment_reading.md"

#: What the paper gains over its reference with all training scans (Müller et al., section 4).
PAPER = {"ROC AUC": 0.03, "average precision": 0.39, "Dice": 0.22}

VOXELWISE: Mapping[str, Score] = {
    "ROC AUC": statistics.roc_auc,
    "average precision": statistics.average_precision,
    "Dice": statistics.dice,
}
LESIONWISE: Mapping[str, Score] = {
    "lesion sensitivity": statistics.lesion_sensitivity,
    "lesion precision": statistics.lesion_precision,
    "lesion F1": statistics.lesion_f1,
    "volume off by (ml)": statistics.volume_difference,
}


def write_page(out: Path, results: Results, experiment: Experiment) -> None:
    """Write ``experiment.md`` and ``images/experiment-*.png`` into a folder.

    Parts of the experiment that have not been run are left out, and the page says so. A figure
    whose maps are not there stays as it is.
    """
    images = out / "images"
    images.mkdir(parents=True, exist_ok=True)
    page = _Page(results, experiment)
    for number, figure in page.figures().items():
        figure.savefig(images / f"experiment-{number}.png", dpi=120)
    names = sorted(path.name for path in images.glob("experiment-*.png"))
    text = "\n\n".join(part for part in page.parts(names) if part)
    (out / "experiment.md").write_text(text + "\n", encoding="utf-8")


class _Page:
    """The texts and tables of the available results."""

    def __init__(self, results: Results, experiment: Experiment) -> None:
        self.results = results
        self.experiment = experiment
        self.plan = experiment.plan
        self.names = chosen(results, self.plan)

    def main(self, family: str, fraction: float = 1.0, of: float = 1.0) -> list[Result]:
        """The runs of a family on a share, of the splits that it and `COMPARED` have done.

        ``of`` is another share that they must have done there.
        """
        names = {self.names[some] for some in (*COMPARED, family)}
        return [
            self.results[Run("main", self.names[family], fraction, seed)]
            for seed in range(self.plan.seeds)
            if all(
                Run("main", name, share, seed) in self.results
                for name in names
                for share in (fraction, of)
            )
        ]

    def _over(self, runs: list[Result], fraction: float = 1.0) -> str:
        """Gain of the equivariant network, trained on a share, over some runs on their splits.

        Empty if it has not done them all.
        """
        seeds = [result.run.seed for result in runs]
        ours = _of_seeds(self.main("equivariant", fraction), seeds)
        return _gain(ours, runs) if runs and len(ours) == len(runs) else ""

    def _wins(self, runs: list[Result]) -> str:
        """On how many splits of some runs the equivariant network has more average precision."""
        ours = _of_seeds(self.main("equivariant"), [result.run.seed for result in runs])
        scores = (map(statistics.average_precision, _tested(some)) for some in (ours, runs))
        gains = [one > other for one, other in zip(*scores, strict=True)]
        return f"{sum(gains)} of {len(gains)}"

    def _splits(self, label: str, runs: Sequence[Result]) -> str:
        """The label, and the number of splits unless all are done."""
        some = f" ({len(runs)} of {self.plan.seeds} splits)"
        return label if len(runs) == self.plan.seeds else label + some

    def _of(self, stage: str, contender: str, fraction: float = 1.0) -> list[Result]:
        runs = [Run(stage, contender, fraction, seed) for seed in range(self.plan.seeds)]
        return [self.results[run] for run in runs if run in self.results]

    def _beside_main(self, stage: str, name: str) -> tuple[list[Result], list[Result]]:
        """The runs of the comparison on the splits that a stage has done, and the stage's."""
        others = self._of(stage, name)
        return [self.results[Run("main", name, 1.0, r.run.seed)] for r in others], others

    # -- figures ---------------------------------------------------------------------------------

    def figures(self) -> dict[int, object]:
        """Those that can be drawn."""
        drawn: dict[int, object] = {}
        split = self.experiment.splits[0]
        first = {
            family: runs[0]
            for family in self.names
            if (runs := self.main(family)) and runs[0].run.seed == 0
        }
        if all(family in first for family in COMPARED):
            drawn[2] = figures.figure_2(
                {
                    label: {
                        family: {
                            fraction: statistics.estimate(score, _tested(runs, USUAL.name))
                            for fraction in self.plan.fractions
                            if len(runs := self._of("main", self.names[family], fraction))
                            == self.plan.seeds
                        }
                        for family in first
                    }
                    for label, score in VOXELWISE.items()
                }
            )
            by_share = {
                family: {
                    fraction: runs[0]
                    for fraction in self.plan.fractions
                    if (runs := self.main(family, fraction)) and runs[0].run.seed == 0
                }
                for family in first
            }
            shown = [result.run for results in by_share.values() for result in results.values()]
            if all(figures.has_maps(self.experiment.out, run) for run in shown):
                out, subjects = self.experiment.out, self.experiment.scans.load(USUAL, split.test)
                drawn[1] = figures.figure_1(out, first, subjects)
                drawn[3] = figures.figure_3(out, by_share, subjects)
        return drawn

    # -- text ------------------------------------------------------------------------------------

    def parts(self, images: Sequence[str]) -> list[str]:
        """The parts of the page, some of them empty."""
        pictures = {name.removeprefix("experiment-")[0]: f"![](images/{name})" for name in images}
        return [
            "# Does equivariance need fewer scans?",
            self._about(),
            "## Goals and results",
            self._goals(),
            "## Interpretation",
            READING.read_text(encoding="utf-8").strip(),
            "## All training patients",
            self._scores(),
            pictures.get("1", ""),
            "## Rivals",
            self._rivals(),
            "## Fewer training patients",
            self._fractions(),
            pictures.get("2", ""),
            pictures.get("3", ""),
            "## Rotated heads and tables",
            self._conditions([ROTATED.name], "usual pose", variants=("conv-turned",)),
            "## Other gradient tables",
            self._conditions(
                [condition.name for condition in self.plan.other_tables],
                "usual",
                variants=("tables", "subsets"),
            ),
            "## Other grids",
            self._grids(),
            "## Small and large loads",
            self._loads(),
            "## More training heads",
            self._heads(),
            "## Single-voxel baselines",
            self._table_of("baselines", BASELINES),
            "## Other networks",
            self._table_of("variants", {name: self._as_built(name) for name in CONTENDERS}),
            "## Tuning",
            self._tuning(),
            "## Twice as long",
            self._longer(),
        ]

    def _about(self) -> str:
        split = self.experiment.splits[0]
        wanted = [
            *tuning_runs(self.plan),
            *main_runs(self.results, self.plan),
            *other_runs(self.results, self.plan),
        ]
        done = sum(run in self.results for run in wanted)
        counts = ", ".join(str(len(split.share(f))) for f in self.plan.fractions)
        splits = "One split" if self.plan.seeds == 1 else f"{self.plan.seeds} splits"
        return (
            "<!-- by `python examples/reproduce_paper.py --save`, from experiment.jsonl -->\n"
            "The experiment of [Müller et al.](https://arxiv.org/abs/2102.06942) on public "
            "data. **The diffusion signal is simulated**: the lesion outlines come from real "
            "patients (Lesjak et al. 2017), the fibre directions from the HCP1065 template; a "
            "model generates the signal, the severity of lesions, the shapes and poses of heads, "
            "and the noise. So the numbers differ from the paper's and do not apply to clinical "
            "data; they compare networks.\n\n"
            + (
                ""
                if self.plan == FULL
                else "**This is a shortened run**: it shows that all parts work; its numbers have "
                "no meaning.\n\n"
            )
            + f"{splits} of {sum(map(len, vars(split).values()))} patients: "
            f"{len(split.test)} for testing (different in each split), {len(split.validation)} for "
            f"validation (all choices, no tests), and {counts} of {len(split.training)} for "
            "training. Scores pool all voxels of a split's test patients and are averaged over the "
            "splits, with 95 % intervals of a bootstrap over the test patients. The learning rate "
            "falls to 0 at the largest number of steps. Training ended there, or when the average "
            f"precision of the validation patients had not risen by {self.plan.rise:g} in "
            f"{self.plan.patience} validations.\n\n"
            f"{done} of {len(wanted)} runs are done."
            + (
                ""
                if done == len(wanted)
                else " Missing runs are left out below; two "
                "networks are compared on the splits that both have done."
            )
            + self._not_run()
        )

    def _not_run(self) -> str:
        missing = [family for family in self.plan.families if not self._has_run(family)]
        return f" Not yet run: {', '.join(missing)}." if missing else ""

    def _has_run(self, family: str) -> bool:
        return family in self.names and bool(self.main(family))

    def _goals(self) -> str:
        """Results beside those of the paper and the goals of exact equivariance."""
        rows = []
        for reference, theirs in self._references().items():
            seeds = [run.run.seed for run in theirs]
            reference = self._splits(reference, theirs)
            ours = _of_seeds(self.main("equivariant"), seeds)
            for label, score in VOXELWISE.items():
                gain = statistics.ratio(score, _tested(ours), _tested(theirs))
                rows.append(_goal(f"{label}, all patients, over {reference}", gain, PAPER[label]))
            for fraction in (0.263, 0.066):
                if len(few := _of_seeds(self.main("equivariant", fraction), seeds)) == len(seeds):
                    share = f"{100 * fraction:g} % of the patients"
                    gain = statistics.ratio(
                        statistics.average_precision, _tested(few), _tested(theirs)
                    )
                    rows.append(
                        _goal(f"average precision, {share}, over {reference} on all", gain, 0.0)
                    )
        ours = self.main("equivariant")
        if ours:
            change = statistics.ratio(
                statistics.average_precision, _tested(ours, ROTATED.name), _tested(ours)
            )
            rows.append(
                _goal("average precision, heads and tables turned, over the usual", change, -0.01)
            )
        if not rows:
            return "Not yet run."
        return (
            "The margins and the quarter of the scans are results of the paper; the sixteenth and "
            "the rotated heads are our own goals.\n\n"
            + _table(["of the equivariant network", "result", "goal", "reached"], rows)
        )

    def _references(self) -> dict[str, list[Result]]:
        """That of the comparison, the same with twice the steps, and the best rival; if run."""
        found = {
            "the reference": self.main("reference"),
            "the reference with twice the steps": self._of("longer", self.names["reference"]),
        }
        if rivals := {f: self.main(f) for f in self.plan.families if self._is_rival(f)}:
            best = min(rivals, key=lambda family: self._lead(rivals[family]))
            found[f"the best rival ({best})"] = rivals[best]
        return {label: runs for label, runs in found.items() if runs}

    def _is_rival(self, family: str) -> bool:
        return family not in (*OURS, *COMPARED) and self._has_run(family)

    def _lead(self, runs: list[Result]) -> float:
        """Of the equivariant network over some runs, in average precision on their splits."""
        ours = _of_seeds(self.main("equivariant"), [result.run.seed for result in runs])
        return statistics.ratio(statistics.average_precision, _tested(ours), _tested(runs)).value

    def _rivals(self) -> str:
        """What people would take instead of the reference, and what it costs."""
        rows = []
        for family in self.plan.families:
            if family in OURS:
                continue
            if not self._has_run(family):
                rows.append([family, "not yet run", *[""] * 7])
                continue
            runs = self.main(family)
            turned = _tested(runs, ROTATED.name)
            rows.append(
                [
                    self._splits(family, runs),
                    self._hours("tuning", [c.name for c in candidates(self.plan)[family]]),
                    self._hours("main", [self.names[family]]),
                    *(
                        _number(statistics.estimate(statistics.average_precision, subjects))
                        for subjects in (_tested(runs), turned)
                    ),
                    *(self._over(runs, fraction) for fraction in (1.0, 0.263, 0.066)),
                    self._wins(runs),
                ]
            )
        return (
            "Convolutions on maps that any gradient table gives: *invariant maps* are the norms of "
            "the signal's spherical harmonics of order 0, 2 and 4 on the shell; *tensor maps* are "
            "FA, MD, AD and RD; *harmonics* are the coefficients themselves, with heads and tables "
            "turned at random in training. The layers are those of the reference, or "
            "[SegResNet](https://arxiv.org/abs/1810.11654) of MONAI. The last columns are gains in "
            "average precision of the equivariant network, trained on all patients or a share of "
            "them, over the network of the row trained on all. Hours are those of all runs so far, "
            "with validation; runs may have been on different machines, and beside others.\n\n"
            + _table(
                [
                    "network",
                    "hours of tuning",
                    "hours of training",
                    "average precision",
                    "heads and tables turned",
                    "over it",
                    "over it, with 26.3 % of the patients",
                    "over it, with 6.6 %",
                    "splits with a gain",
                ],
                rows,
            )
        )

    def _hours(self, stage: str, names: Sequence[str]) -> str:
        seconds = [r.seconds for r in self.results.of(stage) if r.run.contender in names]
        return f"{sum(seconds) / 3600:.1f}"

    def _scores(self) -> str:
        rows = []
        for family, name in self.names.items():
            if runs := self.main(family):
                rows.append(
                    [
                        f"{family}: {CONTENDERS[name].says}",
                        f"{runs[0].weights:,}",
                        str(len(runs)),
                        *_row({**VOXELWISE, **LESIONWISE}, _tested(runs)),
                    ]
                )
        if not rows:
            return ""
        return (
            _table(["network", "weights", "splits", *VOXELWISE, *LESIONWISE], rows)
            + "\n\nA predicted and a true lesion match if their intersection over union is 0.1 or "
            "more; each matches at most once (panoptica). Thresholds are those of highest Dice on "
            "the validation patients."
        )

    def _fractions(self) -> str:
        rows = []
        for fraction in self.plan.fractions:
            for family, name in self.names.items():
                if not (runs := self._of("main", name, fraction)):
                    continue
                gains = ["", ""]
                if family != "equivariant":
                    whole = self.main(family, of=fraction)
                    gains = [self._over(runs, fraction), self._over(whole, fraction)]
                patients = len(self.experiment.splits[0].share(fraction))
                rows.append(
                    [
                        f"{100 * fraction:g} % ({patients})",
                        family,
                        str(len(runs)),
                        *_row(VOXELWISE, _tested(runs)),
                        *gains,
                    ]
                )
        if not rows:
            return "Not yet run."
        return (
            "The last two columns are gains in average precision of the equivariant network "
            "trained on as many patients: over the network of the row, and over that network "
            "trained on all patients.\n\n"
            + _table(
                ["patients", "network", "splits", *VOXELWISE, "gain over it", "over it on all"],
                rows,
            )
        )

    def _conditions(self, names: Sequence[str], usual: str, variants: Sequence[str] = ()) -> str:
        rows = []
        says = {c.name: c.says for c in (ROTATED, *OTHER_TABLES)}
        compared = {family: self.main(family) for family in self.names}
        compared |= {CONTENDERS[name].says: self._of("variants", name) for name in variants}
        for family, runs in compared.items():
            if not runs:
                continue
            family = self._splits(family, runs)
            rows.append([family, usual, *_row(VOXELWISE, _tested(runs)), ""])
            for name in names:
                for suffix in SUFFIXES:
                    if all(name + suffix in run.tests for run in runs):
                        turned = _tested(runs, name + suffix)
                        change = statistics.ratio(
                            statistics.average_precision, turned, _tested(runs)
                        )
                        label = says[name] + suffix
                        rows.append([family, label, *_row(VOXELWISE, turned), _percent(change)])
                if not any(name + suffix in runs[0].tests for suffix in SUFFIXES):
                    rows.append([family, says[name], *["cannot run"] * len(VOXELWISE), ""])
        if not rows:
            return "Not yet run."
        return (
            _table(["network", "test", *VOXELWISE, "change of average precision"], rows)
            + "\n\nResampled: the signal was fitted by spherical harmonics and evaluated along the "
            "training directions of the reference. Trained shell: the other shells were left out; "
            "networks on maps always leave them out. No network of the comparison was trained with "
            "a second shell."
            + (
                " More gradient tables: network with sums, trained also with scans of the same "
                f"patients with {', '.join(condition.says for condition in MORE_TABLES)}. "
                "Directions left out: integrals and the features of the default; of each scan, a "
                "training batch has a random part of the directions, at least "
                f"{100 * (1 - SUBSETS.dropped):.0f} %."
                if "tables" in variants
                else ""
            )
        )

    def _grids(self) -> str:
        """Networks on grids that they were not trained on, and networks that were."""
        there = {FINE: self._of("variants", "at-fine"), COARSE: self._of("variants", "at-coarse")}
        networks = {
            "equivariant": self.main("equivariant"),
            CONTENDERS["grids"].says: self._of("variants", "grids"),
            CONTENDERS["at-fine"].says: there[FINE],
            CONTENDERS["at-coarse"].says: there[COARSE],
        }
        rows = []
        for label, runs in networks.items():
            for condition in (USUAL, FINE, COARSE):
                if some := [run for run in runs if condition.name in run.tests]:
                    scores = _row(VOXELWISE, _tested(some, condition.name))
                    change = self._change(condition, some, there.get(condition, []))
                    rows.append([self._splits(label, some), condition.says, *scores, change])
        if not rows:
            return "Not yet run."
        return (
            "The same heads and gradient table on other grids. Nothing is resampled. The last "
            "column compares with a network that was trained on voxels of that size alone, on the "
            "splits that both have done. That network has the features of the default and a "
            "radius of 1.5 of its voxels, and saw each patient in one pose, the others in three; "
            "all boxes have as many voxels, so that finer ones are smaller.\n\n"
            + _table(["network", "test", *VOXELWISE, "change of average precision"], rows)
        )

    @staticmethod
    def _change(condition: Condition, runs: list[Result], there: list[Result]) -> str:
        """In average precision, from networks trained under a condition to others tested in it."""
        common = sorted({run.run.seed for run in runs} & {run.run.seed for run in there})
        if not common or runs[0].run.contender == there[0].run.contender:
            return ""
        return _gain(_of_seeds(runs, common), _of_seeds(there, common), condition.name)

    def _heads(self) -> str:
        rows = []
        for family, name in self.names.items():
            for number, runs in zip(
                (1, 1 + len(MORE_HEADS)), self._beside_main("heads", name), strict=True
            ):
                if runs:
                    scores = _row(VOXELWISE, _tested(runs))
                    rows.append([family, f"{number} for each patient", str(len(runs)), *scores])
        if not rows:
            return "Not yet run."
        return (
            "The same lesion outlines in further simulated heads, each with its own shape, tissue, "
            "noise, and severity of lesions: the gain from more scans without more patients.\n\n"
            + _table(["network", "training heads", "splits", *VOXELWISE], rows)
        )

    def _loads(self) -> str:
        rows = []
        for family in self.names:
            runs = self.main(family)
            for label, small in (
                (f"below {SMALL_LOAD:g} ml", True),
                (f"{SMALL_LOAD:g} ml and more", False),
            ):
                groups = [
                    [s for s in subjects if (s.load_ml < SMALL_LOAD) == small]
                    for subjects in _tested(runs)
                ]
                if kept := [group for group in groups if group]:
                    number = sum(map(len, kept))
                    rows.append(
                        [self._splits(family, runs), f"{label} ({number})", *_row(VOXELWISE, kept)]
                    )
        if not rows:
            return "Not yet run."
        return _table(["network", "load (patients)", *VOXELWISE], rows)

    def _as_built(self, name: str) -> str:
        """The name of a contender, with a remark if its definition has changed since it was run."""
        contender, runs = CONTENDERS[name], self._of("variants", name)
        if not runs:
            return contender.says
        now = sum(p.numel() for p in contender.build(self.plan.voxel_size).parameters())
        if runs[0].weights == now:
            return contender.says
        return f"{contender.says} (as it was built then; now it has {now:,} weights)"

    def _table_of(self, stage: str, says: Mapping[str, str]) -> str:
        rows = []
        for name, label in says.items():
            if runs := [run for run in self._of(stage, name) if USUAL.name in run.tests]:
                weights = f"{runs[0].weights:,}" if runs[0].weights else ""
                rows.append([label, weights, str(len(runs)), *_row(VOXELWISE, _tested(runs))])
        if not rows:
            return "Not yet run."
        return _table(["", "weights", "splits", *VOXELWISE], rows)

    def _longer(self) -> str:
        rows = []
        for family, name in self.names.items():
            for runs in self._beside_main("longer", name):
                if not runs:
                    continue
                rows.append(
                    [
                        family,
                        f"{runs[0].settings['largest_steps']:,}",
                        str(len(runs)),
                        f"{np.mean([run.best for run in runs]):.3f}",
                        *_row(VOXELWISE, _tested(runs)),
                        "" if family == "equivariant" else self._over(runs),
                    ]
                )
        if not rows:
            return "Not yet run."
        return (
            "The networks of the comparison with twice the steps, as a test of convergence. The "
            "last column is the gain in average precision of the equivariant network of the "
            "comparison over them.\n\n"
            + _table(
                [
                    "network",
                    "largest number of steps",
                    "splits",
                    "validation average precision",
                    *VOXELWISE,
                    "gain over it",
                ],
                rows,
            )
        )

    def _tuning(self) -> str:
        rows = []
        for family, some in candidates(self.plan).items():
            for contender in some:
                run = Run("tuning", contender.name, 1.0, 0)
                if run not in self.results:
                    rate = f"{contender.learning_rate:g}"
                    rows.append([family, contender.says, "", rate, "not yet run", "", ""])
                    continue
                result = self.results[run]
                step, score = max(result.validation, key=lambda item: item[1])
                taken = contender.name == self.names.get(family)
                rows.append(
                    [
                        family,
                        contender.says + (" (taken)" if taken else ""),
                        f"{result.weights:,}",
                        f"{contender.learning_rate:g}",
                        f"{score:.3f}",
                        f"{step:,} of {result.steps:,}",
                        f"{result.seconds / 60:.0f}",
                    ]
                )
        return (
            "The same number of candidates of each family, on the first split; the best one on the "
            "validation patients is taken. No test patient was used.\n\n"
            + _table(
                [
                    "family",
                    "network",
                    "weights",
                    "learning rate",
                    "validation average precision",
                    "best at step",
                    "minutes",
                ],
                rows,
            )
        )


def _of_seeds(runs: Sequence[Result], seeds: Sequence[int]) -> list[Result]:
    return [run for run in runs if run.run.seed in seeds]


def _goal(label: str, found: Estimate, wanted: float) -> list[str]:
    reached = "yes" if found.value >= wanted else "no"
    return [label, _percent(found), f"{100 * wanted:+.0f} % or more", reached]


def _tested(runs: Sequence[Result], name: str = USUAL.name) -> Subjects:
    return [list(run.tests[name].subjects) for run in runs]


def _row(scores: Mapping[str, Score], subjects: Subjects) -> list[str]:
    return [_number(statistics.estimate(score, subjects)) for score in scores.values()]


def _number(estimate: Estimate) -> str:
    if math.isnan(estimate.value):
        return "none"
    return f"{estimate.value:.3f} ({estimate.low:.3f} to {estimate.high:.3f})"


def _percent(estimate: Estimate) -> str:
    value, low, high = (100 * x for x in (estimate.value, estimate.low, estimate.high))
    return f"{value:+.1f} % ({low:+.1f} to {high:+.1f})"


def _gain(runs: Sequence[Result], over: Sequence[Result], name: str = USUAL.name) -> str:
    """In average precision under a condition."""
    ours, theirs = (_tested(some, name) for some in (runs, over))
    return _percent(statistics.ratio(statistics.average_precision, ours, theirs))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
