"""Extensions of NIfTI headers say themselves how large they are; none of their bytes is kept."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.trust.bounds import bounded
from tests.trust.test_fuzz import INTENSITIES, MASKS, SCANS, write_all
from tripq.scans import read_dwi
from tripq.scans.nifti import MAX_HEADER_BYTES, open_nifti

MANY_SMALL = struct.pack("<ii", 8, 0) * 2**16
ATTACKS = {
    "many of 8 bytes": MANY_SMALL,
    "one of 16 MB": struct.pack("<ii", 16 << 20, 6) + bytes((16 << 20) - 8),
    "larger than the file": struct.pack("<ii", 2**31 - 16, 6),
    "of negative size": struct.pack("<ii", -16, 6),
    "of no size": bytes(16),
    "rubbish": b"\xff" * 64,
}


def extended(content: bytes, extensions: bytes) -> bytes:
    """An image with something between its header and its intensities, whatever it is."""
    kind = nib.Nifti1Header if content[:4] == b"\x5c\x01\0\0" else nib.Nifti2Header
    size = kind.sizeof_hdr
    header = kind(content[:size])
    offset = int(header["vox_offset"])
    space = -(-(size + 4 + len(extensions)) // 16) * 16
    header["vox_offset"] = space
    head = header.binaryblock + b"\1\0\0\0" + extensions
    return head.ljust(space, b"\0") + content[offset:]


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("attack", ATTACKS)
def test_extensions_cost_nothing_and_change_nothing(
    attack: str, kind: type[nib.Nifti1Image], suffix: str, tmp_path: Path
) -> None:
    files = {}
    for name, good in (("dwi", SCANS), ("mask", MASKS)):
        content = extended(good[kind], ATTACKS[attack])
        packed = gzip.compress(content, 1) if suffix == ".nii.gz" else content
        files[f"{name}{suffix}"] = packed
    write_all(tmp_path, **files)
    scan = tmp_path / f"dwi{suffix}"
    with bounded(20, 5):
        image = open_nifti(scan)
        dwi = read_dwi(scan, mask=tmp_path / f"mask{suffix}")
    assert not image.header.extensions
    assert not dwi.header.extensions
    np.testing.assert_array_equal(np.asarray(image.dataobj), INTENSITIES)


def test_the_image_begins_near_its_header(tmp_path: Path) -> None:
    content = bytearray(SCANS[nib.Nifti1Image])
    content[108:112] = struct.pack("<f", MAX_HEADER_BYTES * 2)
    write_all(tmp_path, **{"dwi.nii": bytes(content)})
    with bounded(5, 5), pytest.raises(ValueError, match=r"dwi\.nii: .*cannot begin at byte"):
        open_nifti(tmp_path / "dwi.nii")


def test_the_usual_reader_would_take_them(tmp_path: Path) -> None:
    """The attack is one: nibabel by itself makes an object of each extension."""
    write_all(tmp_path, **{"dwi.nii": extended(SCANS[nib.Nifti1Image], MANY_SMALL[: 8 * 500])})
    with pytest.warns(UserWarning, match="multiple of 16"):
        assert len(nib.load(tmp_path / "dwi.nii").header.extensions) > 490
