r"""Assemble a MONAI bundle of a trained network: ``python examples/monai_bundle.py bundle``.

It holds configs/, models/, docs/ and the licences; the weights are copied from the package.  Then:

    python -m monai.bundle run run --config_file bundle/configs/inference.json \
        --bundle_root bundle --dataset_dir data --output_dir maps
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tripq.networks.checkpoint import read_notes
from tripq.tasks.lesions.command import LesionCommands
from tripq.tasks.lesions.datasets import LICENCES
from tripq.tasks.lesions.weights import weights_header

ROOT = Path(__file__).parents[1]
SCHEMA = (
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/"
    "meta_schema_20240725.json"
)
MODEL = "models/network.safetensors"
DIRECTIONS = 32
"""Directions of the table for which MONAI checks shapes; the network takes any table."""


def metadata(notes: dict[str, str]) -> dict[str, Any]:
    """Content of configs/metadata.json."""
    volume = {"spatial_shape": ["*", "*", "*"], "dtype": "float32", "is_patch_data": False}
    return {
        "schema": SCHEMA,
        "version": version("tripq").partition("+")[0],
        "changelog": {version("tripq").partition("+")[0]: "assembled by examples/monai_bundle.py"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch").partition("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {"tripq": version("tripq").partition("+")[0]},
        "task": "Candidates of multiple sclerosis lesions in diffusion MRI; research only",
        "description": notes["caution"],
        "authors": "tripq developers",
        "copyright": "MIT; data of the training: docs/data_license.txt",
        "data_type": "nifti",
        "network_data_format": {
            "inputs": {
                "image": {
                    **volume,
                    "type": "image",
                    "format": "diffusion signal divided by b0",
                    "modality": "MR",
                    "num_channels": DIRECTIONS + 1,
                    "value_range": [0, 1],
                    "channel_def": {
                        str(i): "b0" if i == 0 else f"direction {i}" for i in range(DIRECTIONS + 1)
                    },
                }
            },
            "outputs": {
                "pred": {
                    **volume,
                    "type": "logit",
                    "format": "segmentation",
                    "num_channels": 1,
                    "value_range": [],
                    "channel_def": {"0": "lesion candidate"},
                }
            },
        },
    }


def inference(notes: dict[str, str]) -> dict[str, Any]:
    """Content of configs/inference.json; the scans have the voxel size of the training."""
    edge = float(notes["voxel_size_mm"].split()[0])
    b_value = float(notes["b_values"].split()[0])
    return {
        "imports": [
            "$import glob",
            "$import torch",
            "$import tripq.monai as tripq_monai",
            "$import tripq.simulate as simulate",
        ],
        "bundle_root": ".",
        "dataset_dir": ".",
        "output_dir": "maps",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "table": f"$simulate.GradientTable.from_shells([{b_value}], [{DIRECTIONS}])",
        "q": f"$torch.from_numpy(@table.directions).float() * {(b_value / 1000) ** 0.5}",
        "network": {
            "_target_": "tripq.monai.load_volume_network",
            "path": f"$@bundle_root + '/{MODEL}'",
            "q": "@q",
            "affine": f"$torch.diag(torch.tensor([{edge}, {edge}, {edge}, 1.0]))",
        },
        "preprocessing": {"_target_": "tripq.monai.LoadDWId", "keys": "dwi"},
        "scans": "$sorted(glob.glob(@dataset_dir + '/**/*dwi.nii.gz', recursive=True))",
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'dwi': path} for path in @scans]",
            "transform": "@preprocessing",
        },
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "Activationsd", "keys": "pred", "sigmoid": True},
                {"_target_": "MaskIntensityd", "keys": "pred", "mask_key": "dwi_mask"},
                {
                    "_target_": "SaveImaged",
                    "keys": "pred",
                    "output_dir": "@output_dir",
                    "output_postfix": "probability",
                    "separate_folder": False,
                },
            ],
        },
        "run": [
            "$[@postprocessing(tripq_monai.apply_network(@network, scan)) for scan in @dataset]"
        ],
    }


def assemble(folder: Path, weights: Path) -> None:
    """Write the bundle; existing files of the same names are replaced."""
    notes = read_notes(weights)
    for name in ("configs", "models", "docs"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name, content in (("metadata", metadata(notes)), ("inference", inference(notes))):
        text = json.dumps(content, indent=2) + "\n"
        (folder / "configs" / f"{name}.json").write_text(text, encoding="utf-8")
    shutil.copy(weights, folder / MODEL)
    shutil.copy(ROOT / "LICENSE", folder / "LICENSE")
    _, _, page = (ROOT / "docs/weights.md").read_text(encoding="utf-8").split("---\n", 2)
    card = weights_header(notes) + re.sub(r"\]\((?!http)[^)]*\)", "]", page)  # links of the site
    (folder / "docs/README.md").write_text(card, encoding="utf-8")
    licences = "\n".join(f"* {licence}" for licence in LICENCES)
    (folder / "docs/data_license.txt").write_text(licences + "\n", encoding="utf-8")


def main() -> None:
    """Parse the arguments and assemble."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights", type=Path, default=LesionCommands().included_weights())
    arguments = parser.parse_args()
    assemble(arguments.folder, arguments.weights)
    print(f"{arguments.folder}: a bundle of {arguments.weights.name}")


if __name__ == "__main__":
    main()
