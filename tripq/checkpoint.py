"""Networks in files: weights as safetensors, and in the metadata how to build the network again.

Nothing is unpickled, so a file from a stranger can be read.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import nn

from tripq.files import write_bytes
from tripq.models import ConvSegmenter, LesionSegmenter, PaperSegmenter

#: The networks that a file may name.
NETWORKS: dict[str, type[nn.Module]] = {
    network.__name__: network for network in (LesionSegmenter, PaperSegmenter, ConvSegmenter)
}


class CheckpointError(ValueError):
    """A network cannot be saved, or not be built from a file; the message says why."""


def save_network(
    network: nn.Module, path: str | PathLike[str], notes: Mapping[str, str] | None = None
) -> None:
    """Save a network so that `load_network` can build it.

    Parameters
    ----------
    network : Module
        One of `NETWORKS`.  It keeps the arguments of its constructor as attributes of their names.
    path : path
        ``.safetensors``; an existing file is replaced.  Equal networks with equal notes give equal
        files, byte by byte.
    notes : mapping of str to str, optional
        What else is worth knowing, such as what the network was trained on; kept in the metadata.

    Raises
    ------
    CheckpointError
        If the network is none of those.
    """
    name = type(network).__name__
    if NETWORKS.get(name) is not type(network):
        raise CheckpointError(f"{path}: a {name} cannot be saved, only {', '.join(NETWORKS)}.")
    arguments = {
        argument: getattr(network, argument)
        for argument in inspect.signature(type(network)).parameters
    }
    metadata = {**(notes or {}), "network": name, "arguments": json.dumps(arguments)}
    weights = {key: value.contiguous() for key, value in network.state_dict().items()}
    write_bytes(Path(path), _in_order(save(weights, metadata=metadata)))


def load_network(path: str | PathLike[str]) -> nn.Module:
    """Build a network from a file, on the CPU and in evaluation mode.

    Parameters
    ----------
    path : path
        Written by `save_network`.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged or holds something else.
    """
    metadata = read_notes(path)
    try:
        network = _build(metadata["network"], json.loads(metadata["arguments"]))
        network.load_state_dict(load_file(path))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path}: holds no network of this program: {reason}") from error
    return network.eval()


def read_notes(path: str | PathLike[str]) -> dict[str, str]:
    """The metadata of a file: ``network``, ``arguments`` (JSON), and the notes it was saved with.

    Raises
    ------
    CheckpointError
        If the file is missing or damaged.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"{path}: no such file.")
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file: {error}") from error


def _in_order(content: bytes) -> bytes:
    """A safetensors file with its metadata sorted.

    The library writes them in an order that changes from call to call.  Maps name their weights by
    the SHA-256 of the file, so that equal weights would not be known as such.
    """
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the numbers behind it stay aligned
    return len(text).to_bytes(8, "little") + text + content[start:]


def _build(name: str, arguments: dict[str, Any]) -> nn.Module:
    if name not in NETWORKS:
        raise ValueError(f"the network {name!r} is unknown.")
    return NETWORKS[name](**arguments)
