"""Real, healthy heads of public sources: person, scanner, and how their files are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from tripq.scans import DWI, Frame, read_dwi
from tripq.scans.brain import read_brain
from tripq.tasks.lesions.datasets import Head

Heads = Annotated[Path, typer.Option(help="Folder with the scans of the healthy heads.")]
Only = Annotated[list[str] | None, typer.Option(help="Names of heads; again for more.")]


@dataclass(frozen=True)
class RealHead:
    """A scan of a healthy head in a folder of data.

    Parameters
    ----------
    name : str
        Letters and digits.
    person, scanner, licence : str
        As in `tripq.tasks.lesions.datasets.Head`.
    scan : str
        The image, in the folder of data; its table lies beside it.
    frame : {"fsl", "voxel", "world"}
        The axes of its table.
    mask : str, optional
        Of the brain, beside the image; by default the brain is found by `tripq.scans.brain`.
    """

    name: str
    person: str
    scanner: str
    licence: str
    scan: str
    frame: Frame = "fsl"
    mask: str | None = None

    def read(self, folder: Path) -> DWI:
        """Read the brain from a folder of data."""
        path = folder / self.scan
        if self.mask is None:
            return read_brain(path, frame=self.frame)
        return read_dwi(path, mask=path.parent / self.mask, frame=self.frame)

    def head(self, folder: Path) -> Head:
        """The head for `write_implanted`."""
        return Head(self.name, self.person, self.scanner, self.licence, lambda: self.read(folder))


def _canon(series: str, says: str) -> RealHead:
    return RealHead(
        f"canon{series}",
        "canon",
        "Canon Galan 3T",
        "BSD-2-Clause",
        f"canon_61/{series}_{says}_cl.nii.gz",
    )


def _uih(name: str, scan: str) -> RealHead:
    return RealHead(name, "uih", "United Imaging", "BSD-2-Clause", scan)


def _philips(name: str, scanner: str, scan: str) -> RealHead:
    return RealHead(name, name, scanner, "BSD-2-Clause", f"philips/{scan}.nii.gz")


HEADS = (
    # its table is written along the axes of the voxels, although the affine asks for FSL's rule
    RealHead(
        "nlsam",
        "nlsam",
        "Philips 3T, Sherbrooke",
        "CC-BY-4.0",
        "nlsam_invivo_1p8mm/dwi_1_8.nii.gz",
        frame="voxel",
    ),
    RealHead(
        "tractseg",
        "tractseg",
        "Siemens Connectom, HCP (inferred)",
        "HCP Open Access Data Use Terms",
        "tractseg_example/Diffusion.nii.gz",
        mask="nodif_brain_mask.nii.gz",
    ),
    _philips("ph1201", "Philips Achieva 3T, Bangalore", "ph_1201_DT_HIGH_32DIR_SENSE"),
    _philips("ph601", "Philips Achieva dStream 3T, Nashville", "ph_601_WIP_dti_ax"),
    _philips(
        "pd701", "Philips Ingenia Elition X 3T, Nottingham", "pd_701_DTI_Biobank_2mm_MB3S2_EPI"
    ),
    # series of equal phase encoding; those of sagittal slabs and 4000 (A>P, other world directions)
    # are left out
    _canon("3000", "DTI_PA-ortho"),
    _canon("5000", "DTI_PA-SAG_20d"),
    _canon("6000", "DTI_PA-AX_20d"),
    _canon("7000", "DTI_PA-COR_20d"),
    _canon("8000", "DTI_PA-ALL_20d"),
    _canon("14000", "DTI_PA-ortho-HT"),
    _uih("uihPA6", "dcm_qa_uih/dti_tra_dir16_PA_6_134431.nii"),
    _uih("uihAP9", "uih_series/dti_tra_dir16_AP_9_134431.nii.gz"),
    _uih("uihPA12", "uih_series/dti_tra_dir16_PA_rot_12_134431.nii.gz"),
    _uih("uihPA12b", "uih_series/dti_tra_dir16_PA_rot_12_132222.nii.gz"),
)
"""Healthy heads of public sources, with the traps of their files resolved."""


def choose_heads(names: Sequence[str] | None) -> list[RealHead]:
    """The heads of these names, or all; `typer.BadParameter` if there is none of a name."""
    known = {head.name: head for head in HEADS}
    if wrong := sorted(set(names or ()) - set(known)):
        raise typer.BadParameter(f"no head {', '.join(wrong)}; there are {', '.join(known)}.")
    return [known[name] for name in names or known]


def list_licences(heads: Sequence[RealHead]) -> str:
    """A line for each licence, with its scanners."""
    return "\n".join(
        f"- {licence}: {', '.join(dict.fromkeys(h.scanner for h in some))}"
        for licence in dict.fromkeys(head.licence for head in heads)
        for some in [[head for head in heads if head.licence == licence]]
    )
