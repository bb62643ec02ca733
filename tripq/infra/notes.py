"""Notes in a weights file: the metadata of safetensors, read without torch and without weights."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open

from tripq.infra.files import require_file
from tripq.infra.memory import is_out_of_memory

MAX_NOTES = 2**20
"""Characters of all metadata of a file, at most; ours have less than a thousand."""

NETWORK, ARGUMENTS = "network", "arguments"
"""Notes that every network of tripq has: its class, and the arguments of its constructor (JSON)."""


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file.

    Raises
    ------
    ValueError
        If the file is missing, damaged or of another kind; the message names it.
    MemoryError
        If there is not enough memory to open it.
    """
    require_file(path)
    try:
        with safe_open(path, framework="np") as file:
            notes = dict(file.metadata() or {})
    except (SafetensorError, OSError, MemoryError) as error:
        if is_out_of_memory(error):
            raise MemoryError(f"{path}: out of memory while it was opened.") from error
        if _is_pickle(path):
            raise ValueError(
                f"{path}: a file of torch.save, which can contain programs, was not read. Networks "
                "are .safetensors files; `tripq train` writes one beside its folder of checkpoints."
            ) from error
        raise ValueError(f"{path}: not a complete safetensors file: {error}") from error
    if (length := sum(map(len, (*notes, *notes.values())))) > MAX_NOTES:
        raise ValueError(f"{path}: {length:,} characters of notes; at most {MAX_NOTES:,}.")
    return notes


def read_network_metadata(path: Path) -> dict[str, str]:
    """The metadata of a network of tripq; see `read_metadata`.

    Raises
    ------
    ValueError
        As by `read_metadata`, or if the file names no network.
    """
    notes = read_metadata(path)
    if not {NETWORK, ARGUMENTS} <= notes.keys():
        raise ValueError(f"{path}: not a network of tripq: its metadata names no network.")
    return notes


def _is_pickle(path: Path) -> bool:
    """Whether a file begins like one of torch.save, in its new or its old format."""
    try:
        with path.open("rb") as file:
            return file.read(2) in (b"PK", b"\x80\x02")
    except OSError:
        return False
