"""Write a BIDS dataset of simulated heads with label images: white, grey, fluid and lesion.

    python examples/tissue_cohort.py cohort
    python examples/tissue_cohort.py turned --heads 2 --seed 1 --max-rotation 180 --directions 60

Heads have individual shapes and poses, and tables that are turned at random; the numbers of
directions are used in turn.  The signal is simulated.  A second call with the same settings writes
the same heads.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tripq.simulate import GradientTable, default_anatomy, random_settings, simulate_scan
from tripq.tasks.layout import ICBM, Layout
from tripq.tasks.lesions.datasets.simulated import NOTICE
from tripq.tasks.lesions.simulate import Lesions
from tripq.tasks.tissue.scans import write_labelled
from tripq.tasks.tissue.simulated import label_scan

LAYOUT = Layout(
    title="Simulated heads with tissue labels",
    truth_title="Tissue labels and brains of the simulated heads",
    notice=NOTICE,
    kind="a simulated",
    section="Simulation",
    licences=(ICBM,),
)


def main() -> None:
    """Simulate the heads, one after the other."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="of the dataset")
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--voxel-size", type=float, default=2.5, help="edge in mm, from 1 to 5")
    parser.add_argument("--directions", type=int, nargs="+", default=[20, 32, 45])
    parser.add_argument("--max-rotation", type=float, default=10.0, help="of a head, in degrees")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    settings_of_all = {key: value for key, value in vars(args).items() if key != "folder"}
    LAYOUT.describe(args.folder, settings_of_all)
    anatomy = default_anatomy(args.voxel_size)
    heads = zip(
        *(
            random_settings(
                args.heads,
                args.seed,
                table=GradientTable.from_shells([1000.0], [number]),
                max_rotation=args.max_rotation,
            )
            for number in args.directions
        ),
        strict=True,
    )
    for number, choices in enumerate(heads):
        settings = choices[number % len(choices)]
        lesions = Lesions.draw(anatomy, settings.seed)
        scan = simulate_scan(anatomy, modifiers=[lesions], **vars(settings))
        labelled = label_scan(scan, f"sub-{number + 1:02}", [("lesion", "L")])
        write_labelled(args.folder, labelled)
        print(f"{labelled.name}: {labelled.dwi}")


if __name__ == "__main__":
    main()
