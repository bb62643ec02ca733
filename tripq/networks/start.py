"""Training that starts from the weights of an earlier one.

`start_from` takes all weights of a file if it holds the same network with the same arguments, and
otherwise those of the encoder, if both networks have the same: all that precedes the output of a
task (`tripq.networks.encoding`).  The encoder of one task can therefore be the start of another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from torch import nn

from tripq.infra.e3nn import o3
from tripq.infra.files import sha256
from tripq.networks.checkpoint import CheckpointError, arguments_of, load_network, read_notes
from tripq.networks.encoding import Encoding


@dataclass(frozen=True, eq=False)
class Taken:
    """What a network has taken from a file.

    Parameters
    ----------
    path : Path
        The file.
    sha256 : str
        Of the file.
    notes : mapping of str to str
        Of the file.
    modules : tuple of Module
        The network, or the parts of it whose weights are those of the file; `tripq.training.train`
        takes them as ``kept``.
    tensors, new : tuple of str
        Names of the tensors of the network that are those of the file, and of the others.
    """

    path: Path
    sha256: str
    notes: Mapping[str, str]
    modules: tuple[nn.Module, ...]
    tensors: tuple[str, ...]
    new: tuple[str, ...]

    @property
    def whole(self) -> bool:
        """Whether all weights are those of the file."""
        return not self.new

    @property
    def summary(self) -> str:
        """What was taken, for messages."""
        if self.whole:
            return "all weights"
        anew = dict.fromkeys(_part(name, self.tensors) for name in self.new)
        return f"the encoder; {', '.join(anew)} {'starts' if len(anew) == 1 else 'start'} anew"


def start_from(network: nn.Module, path: str | PathLike[str]) -> Taken:
    """Give a network the weights of a file, all of them or those of its encoder.

    Statistics of batch normalisation are taken with the weights, and so are the scales of the input
    of a `ShellNetwork`.

    Parameters
    ----------
    network : Module
        Changed in place.
    path : path
        Written by `tripq.networks.checkpoint.save_network`.

    Returns
    -------
    Taken

    Raises
    ------
    CheckpointError
        If the file is no network, or the encoders differ; the message names the first difference.
        The network is then unchanged.
    MemoryError
        If there is not enough memory for the file.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from tripq.networks import VoxelNetwork, save_network
    >>> def small(irreps_out):
    ...     return VoxelNetwork(irreps_out, q_features="4x0e", p_features="4x0e", n_p_layers=1)
    >>> with TemporaryDirectory() as folder:
    ...     save_network(small("1x0e"), f"{folder}/scalar.safetensors")
    ...     start_from(small("1x0e"), f"{folder}/scalar.safetensors").summary
    ...     start_from(small("3x0e"), f"{folder}/scalar.safetensors").summary
    'all weights'
    'the encoder; head starts anew'
    """
    path = Path(path)
    source = load_network(path)
    names = tuple(network.state_dict())
    modules: tuple[nn.Module, ...]
    if type(source) is type(network) and not _difference(
        arguments_of(network), arguments_of(source)
    ):
        network.load_state_dict(source.state_dict())
        modules, taken = (network,), names
    else:
        modules, taken = _take_encoder(network, source, path)
    new = tuple(name for name in names if name not in taken)
    return Taken(path, sha256(path), read_notes(path), modules, taken, new)


def encoder_arguments(kind: type[Encoding], source: nn.Module, path: Path) -> dict[str, Any]:
    """The arguments with which a network has the same encoder as another.

    Parameters
    ----------
    kind : type
        Class of the network.
    source : Module
        The other network.
    path : Path
        Its file, for the error.

    Returns
    -------
    dict
        By the names of the constructor of `kind`.

    Raises
    ------
    CheckpointError
        If the encoders are of different kinds.
    """
    name = type(source).__name__
    _, encoder = _find_encoder(source)
    if encoder is None:
        raise CheckpointError(
            f"{path}: a {name} has no encoder, and this network needs one of the kind "
            f"{kind.encoder_kind}."
        )
    if encoder.encoder_kind != kind.encoder_kind:
        raise CheckpointError(
            f"{path}: the encoder of its {name} is of the kind {encoder.encoder_kind}, and this "
            f"network needs one of the kind {kind.encoder_kind}."
        )
    return {kind.encoder_arguments[key]: value for key, value in encoder.of_encoder.items()}


def same_argument(one: object, other: object) -> bool:
    """Whether two arguments of networks are equal for the weights.

    Features can be written in several ways, and normalisation over scans and over surroundings is
    the same in training.

    >>> same_argument("4x0e+2x2e", "4x0e + 2x2e"), same_argument("4x0e", "2x0e")
    (True, False)
    >>> same_argument("scan", "local"), same_argument("scan", "batch")
    (True, False)
    >>> same_argument([3, 2], [3, 2])
    True
    """
    if isinstance(one, str | o3.Irreps) and isinstance(other, str | o3.Irreps):
        if {str(one), str(other)} == {"scan", "local"}:
            return True
        return one == other or "".join(str(one).split()) == "".join(str(other).split())
    return one == other


def _take_encoder(
    network: nn.Module, source: nn.Module, path: Path
) -> tuple[tuple[nn.Module, ...], tuple[str, ...]]:
    """The modules of the encoder of a network that has taken its weights, and their names."""
    place, own = _find_encoder(network)
    _, other = _find_encoder(source)
    if own is None:
        raise CheckpointError(
            f"{path}: holds a {type(source).__name__}{_shown_difference(network, source)}; a "
            f"{type(network).__name__} has no encoder, and starts only from one with the same "
            "arguments."
        )
    wanted = encoder_arguments(type(own), source, path)
    assert other is not None  # or there are no arguments
    if name := _difference({key: getattr(own, key) for key in wanted}, wanted):
        raise CheckpointError(
            f"{path}: its encoder has {name} = {_shown(wanted[name])}, and this network "
            f"{_shown(getattr(own, name))}: build the network with that of the file."
        )
    tensors = other.encoder_tensors
    try:
        own.load_state_dict({**own.state_dict(), **tensors})
    except RuntimeError as error:
        raise CheckpointError(
            f"{path}: the tensors of its encoder are not those of a {type(own).__name__}: "
            f"{' '.join(str(error).split())}"
        ) from error
    return own.encoder_modules, tuple(f"{place}{name}" for name in tensors)


def _find_encoder(network: nn.Module) -> tuple[str, Encoding | None]:
    """The network itself or its first part that has an encoder, and the prefix of its tensors."""
    for name, module in network.named_modules():
        if isinstance(module, Encoding):
            return f"{name}." if name else "", module
    return "", None


def _difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """The first argument in which two networks differ; empty for none."""
    return next((name for name in one if not same_argument(one[name], other[name])), "")


def _shown_difference(network: nn.Module, source: nn.Module) -> str:
    if type(network) is not type(source):
        return ""
    ours, theirs = arguments_of(network), arguments_of(source)
    name = _difference(ours, theirs)
    return f" with {name} = {_shown(theirs[name])}, not {_shown(ours[name])}"


def _shown(value: object) -> str:
    return f'"{value}"' if isinstance(value, str | o3.Irreps) else f"{value}"


def _part(name: str, others: Sequence[str]) -> str:
    """The largest part of a network that a tensor belongs to, and none of some others.

    >>> _part("network.head.filters.0.weight", ["network.blocks.0.weight"])
    'network.head'
    """
    words = name.split(".")
    parts = (".".join(words[:number]) for number in range(1, len(words)))
    return next(
        (part for part in parts if not any(other.startswith(f"{part}.") for other in others)), name
    )
