"""Networks in files: weights as safetensors, and the arguments of the network in the metadata.

Nothing is unpickled, so files from untrusted sources can be read.  The sizes that the metadata
implies must agree with the tensors in the file; this is checked before memory is allocated.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from tripq import __version__
from tripq.filters.radial import Radial
from tripq.infra.e3nn import o3
from tripq.infra.files import parse_json, printable, write_bytes
from tripq.infra.memory import is_out_of_memory
from tripq.infra.notes import ARGUMENTS, NETWORK, read_metadata, read_network_metadata
from tripq.networks.registry import find_network, network_names

MAX_ARGUMENT = 1000
"""Characters of one argument of a network, at most, as it stands in the file."""

MAX_ORDER = 11
"""Largest order of a feature: spherical harmonics go so far in e3nn."""

MAX_LAYERS = 100
"""Largest number of layers that a file may ask for."""

#: Arguments of networks in files that were written before these arguments existed.
BEFORE: Mapping[str, Any] = {
    "p_radial": Radial("gaussian", 3),
    "q_radial": Radial("gaussian", 3),
    "group": "SO3",
    "quadrature": "sum",
    "normalize": "batch",
    "b0_contrast": False,
}

_VERSION = "tripq"  # the note that says which version wrote a file


class CheckpointError(ValueError):
    """A network cannot be saved or loaded; the message gives the reason."""


def save_network(
    network: nn.Module, path: str | PathLike[str], notes: Mapping[str, str] | None = None
) -> None:
    """Save a network so that `load_network` can build it.

    Parameters
    ----------
    network : Module
        One of `tripq.networks.registry`.  It keeps the arguments of its constructor as attributes
        of their names.
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
    if name not in network_names() or find_network(name) is not type(network):
        raise CheckpointError(
            f"{path}: a {name} cannot be saved, only {', '.join(network_names())}. "
            "tripq.networks.register_network adds a network of your own."
        )
    arguments = {key: _plain(value) for key, value in arguments_of(network).items()}
    metadata = {
        **(notes or {}),
        NETWORK: name,
        ARGUMENTS: json.dumps(arguments, default=_plain),
    }
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
    MemoryError
        If there is not enough memory for it.
    """
    try:
        metadata = read_network_metadata(Path(path))
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    try:
        arguments = _check_arguments(metadata[NETWORK], parse_json(metadata[ARGUMENTS], ARGUMENTS))
        network = _build(metadata[NETWORK], arguments, load_file(path))
    except (
        *(TypeError, ValueError, LookupError, RuntimeError, ArithmeticError, AssertionError),
        *(SafetensorError, OSError, MemoryError),
    ) as error:
        if is_out_of_memory(error):
            raise MemoryError(f"{path}: out of memory while its weights were loaded.") from error
        (reason, *_) = str(error).splitlines() or [type(error).__name__]
        raise CheckpointError(
            f"{path}: not a network of tripq: {printable(reason[:200])}{_other_version(metadata)}"
        ) from error
    return network.eval()


def read_notes(path: str | PathLike[str]) -> dict[str, str]:
    """The metadata of a file: ``network``, ``arguments`` (JSON), and the notes it was saved with.

    Raises
    ------
    CheckpointError
        If the file is missing or damaged.
    """
    try:
        return read_metadata(Path(path))
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def arguments_of(network: nn.Module) -> dict[str, Any]:
    """The arguments of the constructor of a network, which it keeps as attributes of their names.

    Examples
    --------
    >>> from tripq.networks.conv import ConvSegmenter
    >>> arguments_of(ConvSegmenter(4, widths=(3, 2)))
    {'n_directions': 4, 'widths': (3, 2), 'kernel_size': 3, 'n_classes': 1}
    """
    return {name: getattr(network, name) for name in inspect.signature(type(network)).parameters}


def _plain(value: Any) -> Any:
    """An argument in the types of JSON."""
    if isinstance(value, o3.Irreps):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return value


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


def _check_arguments(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a network, if they are of its types and of possible sizes."""
    known = inspect.signature(find_network(name)).parameters
    checked: dict[str, Any] = {key: value for key, value in BEFORE.items() if key in known}
    if "normalize" in known and type(before := arguments.get("batch_norm")) is bool:
        arguments = {key: value for key, value in arguments.items() if key != "batch_norm"}
        checked["normalize"] = "batch" if before else "none"
    for key, value in arguments.items():
        if key not in known:
            raise ValueError(f"{name} has no argument {key!r}")
        shown = repr(value)
        if len(shown) > MAX_ARGUMENT or not _is_like(value, known[key].default):
            raise ValueError(f"the argument {key} is {shown[:50]}")
        checked[key] = _as_default(value, known[key].default)
    if not 0 <= arguments.get("n_p_layers", 0) <= MAX_LAYERS:
        raise ValueError(f"n_p_layers is {arguments['n_p_layers']}")
    return checked


def _is_like(value: Any, default: Any) -> bool:
    """Whether a value has the type of the default; arguments without a default are counts."""
    if is_dataclass(default):
        known = {field.name: getattr(default, field.name) for field in fields(default)}
        return isinstance(value, dict) and all(
            name in known and _is_like(item, known[name]) for name, item in value.items()
        )
    if isinstance(default, tuple):
        return isinstance(value, list) and all(_is_like(item, 0) for item in value)
    if isinstance(default, bool | str):
        return type(value) is type(default)
    if isinstance(default, float):
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is int


def _as_default(value: Any, default: Any) -> Any:
    """Convert a value that is like the default to its type, such as a dataclass or a tuple."""
    if isinstance(default, tuple):
        return tuple(value)
    if not is_dataclass(default) or isinstance(default, type):
        return value
    items = {name: tuple(item) if type(item) is list else item for name, item in value.items()}
    return type(default)(**items)


def _build(name: str, arguments: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
    """A network with the tensors of a file, which must be exactly those that it needs.

    The network is built twice: first on the meta device, where tensors have sizes and no values.
    It takes memory only if its tensors are those of the file.
    """
    number = sum(tensor.numel() for tensor in tensors.values())
    for key, value in arguments.items():
        if key.endswith("_features") or key.startswith("irreps"):
            irreps = o3.Irreps(value)
            if irreps.num_irreps > number:
                raise ValueError(f"{key} = {value}: more features than there are weights")
            if irreps.lmax > MAX_ORDER:
                raise ValueError(f"{key} = {value}: orders go up to {MAX_ORDER}")
    for key, value in arguments.items():
        if isinstance(value, Radial) and _n_weights(value) > number:
            raise ValueError(f"{key}: more radial functions and hidden units than weights")
    network = find_network(name)
    try:
        with torch.device("meta"):
            planned = network(**arguments)
    except RuntimeError as error:
        raise ValueError(
            f"{name} cannot be built on the meta device, where its size is checked: {error}"
        ) from error
    _check_tensors(planned, tensors)
    built = network(**arguments)
    built.load_state_dict(tensors)
    return built


def _n_weights(radial: Radial) -> int:
    """Weights of the perceptron of radial functions, and of a filter with one weight for each."""
    widths = (radial.number, *radial.hidden, radial.number)
    return radial.number + (sum(a * b for a, b in pairwise(widths)) if radial.hidden else 0)


def _check_tensors(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Raise a `ValueError` unless tensors are those that a network needs, and finite."""
    needed = network.state_dict()
    if missing := sorted({*needed} - {*tensors}):
        raise ValueError(f"the tensor {missing[0]} is missing")
    if others := sorted({*tensors} - {*needed}):
        raise ValueError(f"the tensor {others[0]} is not part of this network")
    if getattr(network, "group", "SO3") == "O3" and _only_first_layer_mirrors(needed, tensors):
        raise ValueError(
            'only its first layer has group="O3", as earlier versions of tripq built it, so it is '
            "not equivariant under reflections. Train it again"
        )
    for key, tensor in tensors.items():
        wanted = needed[key]
        if (tensor.shape, tensor.dtype) != (wanted.shape, wanted.dtype):
            raise ValueError(
                f"the tensor {key} is {tuple(tensor.shape)} of {tensor.dtype}, not "
                f"{tuple(wanted.shape)} of {wanted.dtype}"
            )
        if not torch.isfinite(tensor).all():
            raise ValueError(f"the tensor {key} holds values that are not finite")


def _only_first_layer_mirrors(needed: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> bool:
    """Whether a first layer fits, and filters behind it have weights that O(3) does not allow."""
    return all(
        tensors[key].shape == wanted.shape
        for key, wanted in needed.items()
        if key.startswith("blocks.0.")
    ) and any(
        tensors[key].numel() > wanted.numel() for key, wanted in needed.items() if "filters" in key
    )


def _other_version(notes: Mapping[str, str]) -> str:
    """A remark for errors if another version, the likely cause, wrote the file."""
    written = notes.get(_VERSION, __version__)
    if written == __version__:
        return ""
    return f" (written by tripq {printable(written[:20])}; this is {__version__})"
