"""MONAI: scans as dictionaries, networks on dense volumes, and the bundle."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, verify_metadata, verify_net_in_out
from monai.data import MetaTensor, decollate_batch, list_data_collate

from tests.conftest import run_program
from tripq import PQGraph
from tripq.monai import LoadDWId, VolumeNetwork, apply_network, load_volume_network
from tripq.networks import VoxelNetwork
from tripq.networks.blocks import graph_radius
from tripq.networks.checkpoint import load_network, save_network
from tripq.scans import read_dwi
from tripq.simulate import Anatomy, GradientTable
from tripq.tasks.lesions.command import LesionCommands
from tripq.tasks.lesions.simulate import simulate_subject, write_subject

EXAMPLES = Path(__file__).parents[1] / "examples"

#: What the specification of bundles demands of metadata.json.  MONAI's own schema is fetched from
#: the network, and is not part of its package.
DEMANDED = {
    "type": "object",
    "properties": {
        **{
            name: {"type": "string"}
            for name in (
                *("schema", "version", "monai_version", "pytorch_version", "numpy_version"),
                *("task", "description", "authors", "copyright"),
            )
        },
        "changelog": {"type": "object", "additionalProperties": {"type": "string"}},
        "required_packages_version": {
            "type": "object",
            "additionalProperties": {"type": "string"},
        },
        "network_data_format": {
            "type": "object",
            "patternProperties": {
                "^(inputs|outputs)$": {
                    "type": "object",
                    "patternProperties": {
                        ".+": {
                            "type": "object",
                            "required": [
                                *("type", "format", "num_channels", "spatial_shape", "dtype"),
                                *("value_range", "is_patch_data", "channel_def"),
                            ],
                        }
                    },
                }
            },
            "required": ["inputs", "outputs"],
        },
    },
    "required": [
        *("schema", "version", "changelog", "monai_version", "pytorch_version", "numpy_version"),
        *("required_packages_version", "task", "description", "authors", "copyright"),
        "network_data_format",
    ],
}


@pytest.fixture(scope="module")
def folder(fine_anatomy: Anatomy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a small simulated scan of the voxels that the included network was trained on."""
    folder = tmp_path_factory.mktemp("scan")
    anatomy = fine_anatomy.within((-10, -30, 10), (4, -14, 24))
    table = GradientTable.from_shells([1000.0], [6])
    write_subject(simulate_subject(anatomy, table, seed=0, deformation=0.0), folder)
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    run_program(EXAMPLES / "monai_bundle.py", folder)
    return folder


@pytest.fixture(scope="module")
def scan(folder: Path) -> dict[Any, Any]:
    return LoadDWId("dwi")({"dwi": folder / "dwi.nii.gz", "dwi_mask": folder / "mask.nii.gz"})


def test_a_dictionary_has_the_scan_its_table_and_its_mask(folder: Path, scan: dict) -> None:
    dwi = read_dwi(folder / "dwi.nii.gz", mask=folder / "mask.nii.gz")
    assert scan["dwi"].shape == (7, *dwi.mask.shape)
    np.testing.assert_array_equal(scan["dwi"].movedim(0, -1).numpy()[dwi.mask], dwi.signal)
    np.testing.assert_array_equal(scan["dwi"].affine, dwi.affine)
    np.testing.assert_array_equal(scan["dwi_q"], dwi.q.astype(np.float32))
    np.testing.assert_array_equal(scan["dwi_mask"][0], dwi.mask)
    assert not scan["dwi"][:, ~dwi.mask].any()


def test_a_dense_network_is_the_network_on_the_graph(folder: Path, scan: dict) -> None:
    torch.manual_seed(0)
    network = VoxelNetwork("1x1o", q_features="2x0e + 2x2e", p_features="2x0e + 1x1o", n_p_layers=1)
    network.eval()
    dwi = read_dwi(folder / "dwi.nii.gz", mask=folder / "mask.nii.gz")
    graph = PQGraph.from_grid(dwi.mask, dwi.affine, dwi.q.astype(np.float32), graph_radius(network))
    with torch.no_grad():
        known = network(torch.from_numpy(dwi.signal), graph)
    found = apply_network(VolumeNetwork(network), scan)["pred"]
    assert found.shape == (3, *dwi.mask.shape)
    assert not found[:, ~dwi.mask].any()
    np.testing.assert_allclose(found[:, dwi.mask].T, known, atol=1e-6)
    np.testing.assert_array_equal(found.affine, dwi.affine)


def test_scans_of_a_batch_are_independent(scan: dict) -> None:
    torch.manual_seed(0)
    network = VolumeNetwork(VoxelNetwork(q_features="2x0e", p_features="2x0e", n_p_layers=1))
    network = network.double().eval()
    other = {**scan, "dwi": scan["dwi"].flip(1)}
    both = list_data_collate([scan, other])
    with torch.no_grad():
        found = network(both["dwi"].double(), scan["dwi_q"], scan["dwi"].affine)
        alone = network(other["dwi"][None].double(), scan["dwi_q"], scan["dwi"].affine)
    np.testing.assert_allclose(found[1:], alone, rtol=1e-10, atol=1e-10)


def test_an_output_has_the_metadata_of_its_image(scan: dict) -> None:
    torch.manual_seed(0)
    network = VolumeNetwork(VoxelNetwork(q_features="2x0e", p_features="2x0e", n_p_layers=1))
    network.eval()
    image = list_data_collate([scan, scan])["dwi"]
    affine = scan["dwi"].affine
    found = network(image, scan["dwi_q"], affine)
    plain = network(image.as_tensor(), scan["dwi_q"], affine)
    assert type(plain) is torch.Tensor
    assert torch.equal(found.as_tensor(), plain)
    assert found.requires_grad
    for one in decollate_batch(found.detach()):
        assert isinstance(one, MetaTensor)
        assert torch.equal(one.affine, affine)
        assert one.meta["filename_or_obj"] == scan["dwi"].meta["filename_or_obj"]
    assert torch.equal(apply_network(network, scan)["pred"].affine, affine)


def test_what_is_missing_is_said() -> None:
    network = VolumeNetwork(VoxelNetwork(q_features="2x0e", p_features="2x0e", n_p_layers=1))
    image = torch.ones(1, 4, 3, 3, 3)
    with pytest.raises(ValueError, match="needs q-vectors and an affine"):
        network(image)
    with pytest.raises(ValueError, match=re.escape("with Q = 3 q-vectors, not (1, 4, 3, 3, 3)")):
        network(image, torch.eye(3), torch.eye(4))


def test_a_checkpoint_becomes_a_dense_network(tmp_path: Path) -> None:
    network = VoxelNetwork(q_features="2x0e", p_features="2x0e", n_p_layers=1)
    save_network(network, tmp_path / "tiny.safetensors")
    loaded = load_volume_network(tmp_path / "tiny.safetensors", torch.eye(3), torch.eye(4))
    assert not loaded.training
    assert loaded(torch.rand(1, 3, 2, 2, 2)).shape == (1, 1, 2, 2, 2)


def test_the_bundle_has_the_form_of_monai(bundle: Path, tmp_path: Path) -> None:
    files = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
    assert files == {
        *("LICENSE", "configs/inference.json", "configs/metadata.json", "docs/README.md"),
        *("docs/data_license.txt", "models/network.safetensors"),
    }
    included = LesionCommands().included_weights()
    assert (bundle / "models/network.safetensors").read_bytes() == included.read_bytes()
    schema = tmp_path / "schema.json"  # a file that is there is not fetched
    schema.write_text(json.dumps(DEMANDED), encoding="utf-8")
    metadata = bundle / "configs/metadata.json"
    verify_metadata(meta_file=str(metadata), filepath=str(schema))
    content = json.loads(metadata.read_text(encoding="utf-8"))
    del content["changelog"]
    broken = tmp_path / "metadata.json"
    broken.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match="Failed validating"):
        verify_metadata(meta_file=str(broken), filepath=str(schema))


def test_the_network_of_the_bundle_takes_what_its_metadata_says(bundle: Path) -> None:
    verify_net_in_out(
        "network",
        meta_file=str(bundle / "configs/metadata.json"),
        config_file=str(bundle / "configs/inference.json"),
        device="cpu",
        any=4,
        bundle_root=str(bundle),
    )


def test_the_bundle_gives_the_map_of_the_network(
    bundle: Path, folder: Path, tmp_path: Path
) -> None:
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs/inference.json"))
    parser["bundle_root"], parser["output_dir"] = str(bundle), str(tmp_path)
    mask = str(folder / "mask.nii.gz")
    parser["scans"] = [str(folder / "dwi.nii.gz")]
    parser["dataset"]["data"] = f"$[{{'dwi': path, 'dwi_mask': {mask!r}}} for path in @scans]"
    parser.get_parsed_content("run")
    found = nib.load(tmp_path / "dwi_probability.nii.gz")

    dwi = read_dwi(folder / "dwi.nii.gz", mask=mask)
    network = load_network(LesionCommands().included_weights())
    graph = PQGraph.from_grid(dwi.mask, dwi.affine, dwi.q, graph_radius(network))
    with torch.no_grad():
        known = torch.sigmoid(network(torch.from_numpy(dwi.signal), graph)).numpy()
    np.testing.assert_allclose(found.affine, dwi.affine, atol=1e-5)
    np.testing.assert_allclose(found.get_fdata()[dwi.mask], known, atol=1e-5)
    assert not found.get_fdata()[~dwi.mask].any()


def test_the_card_of_the_bundle_has_a_header_and_the_page(bundle: Path) -> None:
    card = (bundle / "docs/README.md").read_text(encoding="utf-8")
    _, header, body = card.split("---\n", 2)
    entries = dict(line.split(": ", 1) for line in header.splitlines())
    assert entries["library_name"] == "tripq"
    assert json.loads(entries["license"]) == "mit"
    assert "research-only" in json.loads(entries["tags"])
    assert json.loads(entries["datasets"])
    assert "research only" in json.loads(entries["tripq"])["caution"]
    assert "## Scope and limits" in body
    assert not re.findall(r"\]\((?!http)", body), "links of the site lead nowhere in a bundle"


def test_a_loop_of_monai_trains() -> None:
    told = run_program(EXAMPLES / "monai_training.py", "--steps", 4)
    before, after = map(float, re.findall(r"\d\.\d+", told))
    assert after < before
