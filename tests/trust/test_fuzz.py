"""Files of strangers, mutated at random: a valid result, or an error that names the file.

Never anything else: no other exception, no hang, no more memory than a file of that size can need.
A few cases of each run with all tests; `make fuzz` runs thousands.
"""

from __future__ import annotations

import gzip
import json
import re
import struct
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TypeVar

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import Tensor, nn

from tests.trust.bounds import bounded
from tripq import PQGraph
from tripq.commands.files import ResultFiles
from tripq.infra.files import printable
from tripq.networks.checkpoint import CheckpointError, save_network
from tripq.networks.conv import ConvSegmenter
from tripq.networks.registry import network_names
from tripq.scans import DWI, DWIError, read_dwi, write_map
from tripq.scans.bids import BIDSError, find_scans
from tripq.tasks.lesions.listing import MAX_MIN_VOLUME
from tripq.tasks.lesions.maps import (
    MapFiles,
    read_map,
    read_min_volume,
    read_threshold,
    scan_name,
)
from tripq.tasks.lesions.names import lesion_result
from tripq.tasks.lesions.segmentation import Model, load_model, segment_scan
from tripq.tasks.lesions.segmenter import LesionSegmenter

SHAPE, VOLUMES = (4, 3, 2), 7
B_VALUES = "0 1000 1000 2000 0 1000 2000"
BVECS = "0 1 0 0 0 0.6 0.8\n0 0 1 0 0 0.8 0\n0 0 0 1 0 0 0.6"

#: Cheap cases; those that build networks are not.
MANY = settings(max_examples=6 * settings.default.max_examples)


def packed(kind: type[nib.Nifti1Image], shape: tuple[int, ...], values: np.ndarray) -> bytes:
    image = kind(values.reshape(shape), np.diag([-2.0, 2.0, 2.0, 1.0]))
    image.header.set_xyzt_units("mm")
    return image.to_bytes()


KINDS = (nib.Nifti1Image, nib.Nifti2Image)
INTENSITIES = np.random.default_rng(0).integers(1, 4000, (*SHAPE, VOLUMES)).astype(np.uint16)
SCANS = {kind: packed(kind, (*SHAPE, VOLUMES), INTENSITIES) for kind in KINDS}
MASKS = {kind: packed(kind, SHAPE, np.ones(SHAPE, np.uint8)) for kind in KINDS}

EXTREME_INTEGERS = (
    *(0, 1, -1, 2, 3, 5, 7, 8, 16, 64, 100, 128, 256, 512, 768, 1536, 1792, 2304),
    *(127, 255, 30000, 32767, -32768, 65535, 2**31 - 1, -(2**31), 2**62),
)
EXTREME_FLOATS = (
    *(0.0, -0.0, 1.0, -1.0, 0.5, 3.0, 100.0, 348.0, 353.0, 368.0, 600.0),
    *(np.nan, np.inf, -np.inf, 1e-45, 1e-30, 1e-3, 1e6, 1e9, 1e30, -1e38),
)
INTEGERS = st.sampled_from(EXTREME_INTEGERS) | st.integers(-(2**63), 2**63 - 1)
FLOATS = st.sampled_from(EXTREME_FLOATS) | st.floats(width=32)

#: Fields that say where the image is, how large, of what and where in the world.
GEOMETRY = (
    *("dim", "datatype", "vox_offset", "scl_slope", "scl_inter", "xyzt_units", "pixdim"),
    *("sform_code", "qform_code", "srow_x", "srow_y", "srow_z", "quatern_b", "qoffset_x"),
)


def change(header: np.ndarray, name: str, place: tuple[int, ...], value: float) -> None:
    """Write a number into a field, as whatever the bits are that it has there."""
    with np.errstate(all="ignore"):
        header[name][place] = np.array(value).astype(header[name].dtype)


@st.composite
def damaged_images(draw: st.DrawFn, good: dict[type[nib.Nifti1Image], bytes]) -> tuple[str, bytes]:
    """Suffix and content of an image: fields and bytes of its header changed, cut, packed, cut."""
    kind = draw(st.sampled_from(KINDS))
    dtype, size = kind.header_class.template_dtype, kind.header_class.sizeof_hdr
    content = bytearray(good[kind])
    header = np.ndarray((), dtype, content[:size])
    names = st.sampled_from(GEOMETRY) | st.sampled_from(dtype.names)
    for name in draw(st.lists(names, max_size=3)):
        field = header[name]
        if field.dtype.kind == "S":
            header[name] = draw(st.sampled_from([b"", b"n+1", b"n+2", b"ni1", b"nope", b"\xff\0"]))
            continue
        value = draw(FLOATS if field.dtype.kind == "f" else INTEGERS)
        change(header, name, draw(st.sampled_from(list(np.ndindex(field.shape)))), value)
    content[:size] = header.tobytes()
    for place, value in draw(
        st.lists(st.tuples(st.integers(0, size + 3), st.integers(0, 255)), max_size=1)
    ):
        content[place] = value
    end = draw(st.sampled_from([*5 * [None], 0, 3, size - 1, size + 2, -1, -40]))
    behind = draw(st.sampled_from([0, 0, 0, 5, 3 << 20]))
    whole = bytes(content[:end]) + bytes(behind)
    if draw(st.integers(0, 2)):
        return ".nii", whole
    stream = bytearray(gzip.compress(whole, mtime=0))
    for place, value in draw(
        st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=1)
    ):
        stream[min(place, len(stream) - 1)] = value
    return ".nii.gz", bytes(stream[: draw(st.sampled_from([None, None, None, 5, -1, -9]))])


Result = TypeVar("Result")


class Mean(nn.Module):
    """Stands for a network: what is before and after it is what is tested."""

    def forward(self, signal: Tensor, graph: PQGraph) -> Tensor:
        return signal.clamp(max=2).mean(dim=1)


MODEL = Model(
    path=Path("mean.safetensors"),
    sha256="",
    network=Mean().eval(),
    voxel_sizes=(2.0, 2.0),
    b_values=(1000.0,),
    caution="",
)


def write_all(folder: Path, **files: bytes | str) -> None:
    for name, content in {"bval": B_VALUES, "bvec": BVECS, **files}.items():
        data = content.encode() if isinstance(content, str) else content
        (folder / (f"dwi.{name}" if "." not in name else name)).write_bytes(data)


def tried(read: Callable[[], Result], refusal: type[Exception], *beginnings: str) -> Result | None:
    """What is read; None if it was refused in one short line that begins so."""
    try:
        return read()
    except refusal as error:
        refused = str(error)
    assert refused.startswith(beginnings)
    assert len(refused) < 1000
    return None


def tables(scan: Path) -> tuple[Path, Path]:
    return scan.with_name("dwi.bval"), scan.with_name("dwi.bvec")


def check_scan(dwi: DWI, scan: Path) -> None:
    """A scan that was read is what its header says, and a map of it has its grid."""
    shape = nib.load(scan).shape
    assert dwi.mask.shape == shape[:3]
    assert dwi.signal.shape == (np.count_nonzero(dwi.mask), len(dwi.b_values))
    for array in (dwi.signal, dwi.b0, dwi.q, dwi.affine):
        assert np.isfinite(array).all()
    refusals = (
        f"{scan}: {why}" for why in ("0.65 GB of memory are not enough", "no voxel of its mask")
    )
    result = tried(lambda: segment_scan(MODEL, dwi, memory=0.65e9), DWIError, *refusals)
    if result is None:
        return
    assert result.probability.shape == dwi.b0.shape
    assert np.isfinite(result.probability).all()
    target = scan.with_name("map.nii.gz")
    write_map(result.probability, dwi, target)
    written = nib.load(target)
    assert written.shape == shape[:3]
    np.testing.assert_allclose(written.affine, dwi.affine, rtol=1e-4, atol=1e-3)
    assert np.isfinite(written.get_fdata()).all()


def check_file(suffix: str, content: bytes) -> None:
    with TemporaryDirectory() as temporary, bounded(20, 200):
        scan = Path(temporary) / f"dwi{suffix}"
        write_all(scan.parent)
        scan.write_bytes(content)
        dwi = tried(lambda: read_dwi(scan), DWIError, *map(str, (scan, *tables(scan))))
        if dwi is not None:
            check_scan(dwi, scan)


@MANY
@given(image=damaged_images(SCANS))
def test_scans(image: tuple[str, bytes]) -> None:
    check_file(*image)


@pytest.mark.parametrize("name", GEOMETRY)
def test_every_extreme_of_a_header(name: str) -> None:
    """Not left to chance: each by itself, in the first places of its field."""
    dtype, good = nib.Nifti1Header.template_dtype, SCANS[nib.Nifti1Image]
    field = dtype[name]
    values = EXTREME_FLOATS if field.base.kind == "f" else EXTREME_INTEGERS
    for place in list(np.ndindex(field.shape))[:3]:
        for value in values:
            content = bytearray(good)
            header = np.ndarray((), dtype, content[: dtype.itemsize])
            change(header, name, place, value)
            content[: dtype.itemsize] = header.tobytes()
            check_file(".nii", bytes(content))


@MANY
@given(image=damaged_images(MASKS))
def test_masks_and_maps(image: tuple[str, bytes]) -> None:
    suffix, content = image
    with TemporaryDirectory() as temporary, bounded(20, 100):
        folder = Path(temporary)
        write_all(folder, **{"dwi.nii": SCANS[nib.Nifti1Image], f"mask{suffix}": content})
        scan, mask = folder / "dwi.nii", folder / f"mask{suffix}"
        dwi = tried(lambda: read_dwi(scan, mask=mask), DWIError, str(mask))
        assert dwi is None or dwi.mask.shape == SHAPE
        (folder / "truth.nii").write_bytes(MASKS[nib.Nifti1Image])
        files = MapFiles("a map", mask, folder / "truth.nii")
        read = tried(lambda: read_map(files), DWIError, str(mask), f"{folder / 'truth.nii'}: ")
        if read is not None:
            assert read.subject.mask.shape == SHAPE
            assert np.isfinite(np.asarray(read.subject.probability)).all()


WORDS = st.one_of(
    st.sampled_from(
        ["0", "1000", "1", "0.6", "0.8", "-0", "nan", "inf", "-inf", "1e400", "1e-400"]
    ),
    st.sampled_from(["-1000", "1e9", "1_000", "0x10", "١٢", "b=5", "five", "#", "\ufeff", "\0"]),
    st.floats().map(str),
    st.text(max_size=5),
)
GAPS = st.sampled_from([" ", "\n", "\t", ",", "\r\n", "\x0b"])
MRTRIX = "".join(
    f"{x} {y} {z} {b}\n"
    for x, y, z, b in zip(*map(str.split, BVECS.splitlines()), B_VALUES.split(), strict=True)
)
GOOD_TABLES = {"bval": B_VALUES, "bvec": BVECS, "table.b": MRTRIX}


@st.composite
def damaged_tables(draw: st.DrawFn) -> tuple[str, bytes]:
    """Name and content of a table: words changed, bytes changed, or something else altogether."""
    which = draw(st.sampled_from([*GOOD_TABLES]))
    good = GOOD_TABLES[which]
    what = draw(st.sampled_from(["words", "words", "bytes", "other words", "anything"]))
    if what == "words":
        parts = re.split(r"(\s+)", good)
        for place, word in draw(
            st.lists(st.tuples(st.integers(0, len(parts) - 1), WORDS), min_size=1, max_size=2)
        ):
            parts[place] = word if place % 2 == 0 else draw(GAPS)
        return which, "".join(parts).encode(errors="replace")
    if what == "bytes":
        place, content = draw(st.integers(0, len(good) - 1)), good.encode()
        return which, content[:place] + draw(st.binary(max_size=3)) + content[place + 1 :]
    if what == "other words":
        parts = [word + gap for word, gap in draw(st.lists(st.tuples(WORDS, GAPS), max_size=20))]
        return which, "".join(parts).encode(errors="replace")
    return which, draw(st.binary(max_size=60))


@MANY
@given(damaged=damaged_tables())
@example(damaged=("bval", b"1 " * 3_000_000))
@example(damaged=("bvec", b"1" * 1_000_000))
@example(damaged=("bvec", b"1\n" * 50_000 + b"1 2"))
def test_tables(damaged: tuple[str, bytes]) -> None:
    which, content = damaged
    with TemporaryDirectory() as temporary, bounded(20, 200):
        folder = Path(temporary)
        scan = folder / "dwi.nii"
        write_all(folder, **{"dwi.nii": SCANS[nib.Nifti1Image], which: content})
        if which == "table.b":
            mrtrix = folder / which
            dwi = tried(
                lambda: read_dwi(scan, bvec=mrtrix, frame="world"), DWIError, str(mrtrix), str(scan)
            )
        else:
            dwi = tried(lambda: read_dwi(scan), DWIError, *map(str, tables(scan)))
        if dwi is not None:
            check_scan(dwi, scan)


NETWORK_FILES = {}
for made in (
    ConvSegmenter(4, widths=(3, 2)),
    LesionSegmenter(p_radius=2.9, q_features="2x0e+1x2e", p_features="2x0e", n_p_layers=0),
):
    with TemporaryDirectory() as temporary:
        save_network(made, Path(temporary) / "made.safetensors", {"threshold": "0.4"})
        NETWORK_FILES[type(made).__name__] = (Path(temporary) / "made.safetensors").read_bytes()

JSON = st.recursive(
    st.none() | st.booleans() | INTEGERS | st.floats() | FLOATS | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
IRREPS = st.sampled_from(
    [
        "1000000000x0e",
        "300x0e",
        "2x0e",
        "1x2000e",
        "3x12e",
        "",
        "x",
        "0x0e",
        "2x0e+1x2e",
        "1e",
        "-1x0e",
    ]
)
VALUES = st.one_of(INTEGERS, FLOATS, st.lists(st.integers(0, 10**9), max_size=4), JSON)


@st.composite
def damaged_checkpoints(draw: st.DrawFn) -> bytes:
    """Content of a checkpoint: metadata, tensors or bytes changed."""
    content = NETWORK_FILES[draw(st.sampled_from([*NETWORK_FILES]))]
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    metadata = header["__metadata__"]
    what = draw(st.sampled_from(["arguments", "metadata", "tensors", "header", "bytes"]))
    if what == "arguments":
        arguments = json.loads(metadata["arguments"])
        names = st.sampled_from([*arguments, *arguments, "other"])
        for name in draw(st.lists(names, min_size=1, max_size=2)):
            arguments[name] = draw(IRREPS if name.endswith("_features") else VALUES)
        metadata["arguments"] = json.dumps(arguments)
    elif what == "metadata":
        name = draw(st.sampled_from([*metadata, "voxel_size_mm", "b_values", "tripq"]))
        words = st.sampled_from(
            [*network_names(), "nan", "1e400", "0", "-1", "1 2", "[" * 5000, "{}"]
        )
        metadata[name] = draw(words | st.text(max_size=20) | FLOATS.map(str))
    elif what == "header":
        key = draw(st.sampled_from([key for key in header if key != "__metadata__"]))
        part = draw(st.sampled_from(["dtype", "shape", "data_offsets"]))
        header[key][part] = draw(
            st.sampled_from(["F64", "I64", "BOOL", "F8_E4M3"])
            if part == "dtype"
            else st.lists(st.integers(-1, 40) | st.just(2**62), max_size=3)
        )
    elif what == "tensors":
        types = st.sampled_from([torch.float32, torch.float32, torch.float32, torch.int8])
        tensors = {
            key: torch.zeros(value["shape"], dtype=draw(types))
            for key, value in header.items()
            if key != "__metadata__" and draw(st.integers(0, 9))
        }
        fill = draw(st.sampled_from([0.0, np.nan, np.inf]))
        tensors = {k: t.fill_(fill) if t.is_floating_point() else t for k, t in tensors.items()}
        return save(tensors, metadata=metadata)
    text = json.dumps(header).encode()
    result = bytearray(struct.pack("<Q", len(text)) + text + data)
    if what == "bytes":
        for place, value in draw(
            st.lists(st.tuples(st.integers(0, 600), st.integers(0, 255)), min_size=1, max_size=3)
        ):
            result[min(place, len(result) - 1)] = value
        return bytes(result[: draw(st.sampled_from([None, None, 4, 100, -1]))])
    return bytes(result)


@given(content=damaged_checkpoints())
def test_checkpoints(content: bytes) -> None:
    with TemporaryDirectory() as temporary:
        path = Path(temporary) / "net.safetensors"
        path.write_bytes(content)
        with bounded(20, 50, with_torch=True):
            model = tried(lambda: load_model(path), CheckpointError, f"{path}: ")
        if model is None:
            return
        assert type(model.network).__name__ in network_names()
        assert all(torch.isfinite(value).all() for value in model.network.state_dict().values())
        assert 0 <= model.threshold <= 1
        assert 0 <= model.min_volume <= MAX_MIN_VOLUME


@MANY
@given(
    content=st.one_of(
        JSON.map(json.dumps).map(str.encode),
        JSON.map(lambda value: json.dumps({"Threshold": value}).encode()),
        JSON.map(lambda value: json.dumps({"MinVolumeMillilitres": value}).encode()),
        st.binary(max_size=20),
        st.just(b"[" * 100_000),
    )
)
def test_sidecars(content: bytes) -> None:
    with TemporaryDirectory() as temporary:
        path = Path(temporary) / "sub-01_probseg.json"
        path.write_bytes(content)
        image = path.with_suffix(".nii.gz")
        threshold = tried(lambda: read_threshold(image), BIDSError, f"{path}: ")
        assert threshold is None or 0 <= threshold <= 1
        volume = tried(lambda: read_min_volume(image), BIDSError, f"{path}: ")
        assert volume is None or 0 <= volume <= MAX_MIN_VOLUME


NAMES = st.text(
    st.sampled_from("ab01-_.. <>&'\"\n\r\t\x1b\x7f[]{}$`;|*?\\%\u202e\ud83d\ude00\udcff/")
    | st.characters(codec="utf-8"),
    min_size=1,
    max_size=30,
).map(lambda text: text.replace("/", "..").replace("\0", ""))


@MANY
@given(names=st.lists(NAMES, min_size=1, max_size=3, unique=True))
@example(names=["../../../tmp/x".replace("/", "..")])
@example(names=[".x"])
@example(names=["<script>alert(1)<\n"])
def test_names_of_files(names: list[str]) -> None:
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / "sub-01" / "dwi"
        folder.mkdir(parents=True)
        for name in names:
            try:
                (folder / f"sub-{name}_dwi.nii.gz").touch()
            except (OSError, ValueError):  # not a name that this system can have
                continue
        for scan in tried(lambda: find_scans(Path(temporary)), BIDSError, temporary) or ():
            for path in ResultFiles.named(partial(lesion_result, scan)).expected:
                assert path.parent == Path("sub-01/dwi")
                assert ".." not in PurePosixPath(path).parts
            assert printable(str(scan.path)).isprintable()
            assert scan_name(scan).isprintable()


def test_the_bounds_hold() -> None:
    """They are what the tests above stand on."""
    with pytest.raises(AssertionError, match="bytes"), bounded(5, 10):
        assert np.ones(2_000_000).size
    with pytest.raises(AssertionError, match="bytes"), bounded(5, 10, with_torch=True):
        assert torch.ones(3_000_000).numel()
    with pytest.raises(AssertionError, match="not done after 1 s"), bounded(1, 10):
        time.sleep(5)
