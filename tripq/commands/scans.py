"""Reading the scan of a command."""

from __future__ import annotations

import math

from tripq.commands.files import ScanFiles
from tripq.commands.session import Session, log
from tripq.scans import DWI, Frame, read_dwi
from tripq.scans.brain import read_brain


def read_scan(files: ScanFiles, frame: Frame, screen: Session, max_bytes: float = math.inf) -> DWI:
    """Read a scan within its brain mask; without a mask the brain is extracted from b0.

    `max_bytes` limits the memory of its signal.
    """
    table = (files.bval, files.bvec)
    if files.mask is not None:
        with screen.bar(f"reading {files.scan.name}"):
            return read_dwi(files.scan, *table, files.mask, frame, max_bytes=max_bytes)
    log.info("%s: no mask: extracting the brain from b0.", files.scan.name)
    with screen.bar(f"reading {files.scan.name} and extracting the brain"):
        return read_brain(files.scan, *table, frame, max_bytes=max_bytes)
