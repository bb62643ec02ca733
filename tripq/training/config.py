r"""Settings of a training, read from a TOML file and checked.

Each section of the file is a dataclass, and each key one of its fields; `example_config` writes all
keys with descriptions.  This module defines the sections common to all tasks; a task extends them.

>>> TrainingConfig().training.learning_rate
0.01
>>> parse_config("[training]\nlearning_rat = 0.1", "train.toml", TrainingConfig)
Traceback (most recent call last):
...
tripq.training.config.ConfigError: train.toml: [training] learning_rat: no such key; ...
"""

from __future__ import annotations

import json
import reprlib
import sys
from collections.abc import Callable
from dataclasses import field, fields
from inspect import signature
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from tripq.domain.quadrature import Quadrature
from tripq.infra.files import read_text, shortened, whole_number
from tripq.networks.encoder import Encoder
from tripq.networks.encoding import Encoding
from tripq.networks.shell import ShellNetwork
from tripq.nn.batch_norm import Normalization
from tripq.so3.paths import Group, Selection
from tripq.training.augment import Augmentation

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_CONFIG_BYTES = 2**14
"""Maximum size of a settings file; that of `example_config` is a quarter of it.

The memory for parsing a dotted key grows with the square of its length: 4 GB at 64 kB."""

CHECKED = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
"""Validation of fields: no other keys, no conversion of types."""


Features = Annotated[
    str, Field(min_length=1, description="features of every layer, in the notation of e3nn")
]
"""Features of a network whose layers all have the same."""

_Rate = Annotated[float, Field(gt=0, description="highest rate of AdamW")]
Normalize = Annotated[
    Normalization,
    Field(
        description="normalise the features of every layer over the surroundings of each voxel, "
        "over each scan, over a batch, or not"
    ),
]
_BoxSize = Annotated[int, Field(ge=1, description="edge of the boxes in voxels")]
_Boxes = Annotated[int, Field(ge=1, description="boxes per step")]


class ConfigError(ValueError):
    """An invalid settings file; the message names the file and the key."""


def default_of(constructor: Callable[..., object], name: str) -> Any:
    """Default of an argument of a constructor, for the field of settings that configures it.

    >>> default_of(json.dumps, "allow_nan")
    True
    """
    return signature(constructor).parameters[name].default


@dataclass(frozen=True, config=CHECKED)
class NetworkConfig:
    """Arguments of the constructor of a network; a task adds those of its network.

    Attributes
    ----------
    encoding : type or None
        Class whose arguments they are, if its encoder can be taken from another network.
    """

    encoding: ClassVar[type[Encoding] | None] = None


@dataclass(frozen=True, config=CHECKED)
class EncoderConfig(NetworkConfig):
    """Arguments of `tripq.networks.encoder.Encoder`, with its defaults.

    Only the radius is relative to the voxel size, because a fixed radius in mm would include other
    neighbours on other grids.  For voxels of 2 mm it equals the default of the network; for scans
    of several voxel sizes it is relative to the geometric mean of the shortest and the longest
    edge.
    """

    encoding: ClassVar[type[Encoding] | None] = Encoder

    p_radius: Annotated[
        float | None,
        Field(
            gt=0,
            description="radius of the neighbourhood of a voxel in mm; by default 1.5 voxels, "
            "which includes its 26 neighbours",
        ),
    ] = None
    q_features: Annotated[
        str, Field(min_length=1, description="features of the first layer, in the notation of e3nn")
    ] = default_of(Encoder, "q_features")
    p_features: Annotated[
        str, Field(min_length=1, description="features of the following layers")
    ] = default_of(Encoder, "p_features")
    n_p_layers: Annotated[
        int, Field(ge=0, description="number of following layers, without the last")
    ] = default_of(Encoder, "n_p_layers")
    normalize: Normalize = default_of(Encoder, "normalize")
    q_max: Annotated[
        float,
        Field(
            gt=0,
            description="sqrt(b / 1000) of the highest b-value in s/mm2 in any scan, also in "
            "future ones",
        ),
    ] = default_of(Encoder, "q_max")
    filter: Annotated[
        str, Field(min_length=1, description="filter of the first layer; see PQTensorFieldLayer")
    ] = default_of(Encoder, "filter")
    selection: Annotated[
        Selection,
        Field(description="selection of orders in the first layer; see PQTensorFieldLayer"),
    ] = default_of(Encoder, "selection")
    group: Annotated[
        Group,
        Field(description="symmetries of the network: rotations (SO3), or also reflections (O3)"),
    ] = default_of(Encoder, "group")
    quadrature: Annotated[
        Quadrature,
        Field(
            description='"integral": scans of several voxel sizes and tables; "sum": of one voxel '
            "size; see PQTensorFieldLayer"
        ),
    ] = default_of(Encoder, "quadrature")
    antipodal: Annotated[
        bool, Field(description="invariance to the sign of every gradient direction")
    ] = default_of(Encoder, "antipodal")
    b0_contrast: Annotated[
        bool, Field(description="b0 over its median in the mask is read, too, in which T2 shows")
    ] = default_of(Encoder, "b0_contrast")


@dataclass(frozen=True, config=CHECKED)
class ShellConfig(NetworkConfig):
    """Arguments of `tripq.networks.shell.ShellNetwork`, with its defaults."""

    encoding: ClassVar[type[Encoding] | None] = ShellNetwork

    p_radius: Annotated[
        float, Field(gt=0, description="radius of the neighbourhood of a voxel in mm")
    ] = default_of(ShellNetwork, "p_radius")
    p_features: Features = default_of(ShellNetwork, "p_features")
    n_p_layers: Annotated[
        int, Field(ge=1, description="number of these layers, without the last")
    ] = default_of(ShellNetwork, "n_p_layers")
    order: Annotated[
        int, Field(ge=2, le=8, description="highest order of the harmonics: 2, 4, 6 or 8")
    ] = default_of(ShellNetwork, "order")
    smoothing: Annotated[
        float, Field(gt=0, description="Laplace-Beltrami weight of the fit, as in dipy")
    ] = default_of(ShellNetwork, "smoothing")
    quadrature: Annotated[
        Quadrature,
        Field(
            description='"integral": scans of several voxel sizes; "sum": of one voxel size; see '
            "PQTensorFieldLayer"
        ),
    ] = default_of(ShellNetwork, "quadrature")


@dataclass(frozen=True, config=CHECKED)
class OptimisationConfig:
    """Arguments of `tripq.training.train` and of its arguments' constructors, with their defaults.

    The defaults are repeated here, so that a settings file can be read without Lightning.
    """

    steps: Annotated[int, Field(ge=1, description="maximum number of optimiser steps")] = 5000
    hours: Annotated[
        float | None, Field(gt=0, description="maximum hours of training; unlimited by default")
    ] = None
    every: Annotated[int, Field(ge=1, description="steps between two validations")] = 100
    patience: Annotated[
        int, Field(ge=1, description="validations without a rise after which training stops")
    ] = 5
    rise: Annotated[
        float, Field(ge=0, lt=1, description="minimum gain of the score that counts as a rise")
    ] = 0.0
    decay: Annotated[
        float,
        Field(ge=0, lt=1, description="decay per step of the validated running average of weights"),
    ] = 0.99
    warm_up: Annotated[int, Field(ge=1, description="steps in which the learning rate rises")] = 100
    falling: Annotated[
        bool,
        Field(
            description="whether the learning rate rises and falls with the budget instead, for "
            "trainings of known length"
        ),
    ] = False
    learning_rate: _Rate = 1e-2
    weight_decay: Annotated[float, Field(ge=0, description="weight decay of AdamW")] = 1e-2
    box_size: _BoxSize = 24
    n_boxes: _Boxes = 1
    precision: Annotated[
        Literal["auto", "32-true", "bf16-mixed"],
        Field(
            description="32-true is exact; bf16-mixed is faster on processors with bfloat16 "
            "instructions, and many times slower on others; auto uses it on the former"
        ),
    ] = "32-true"
    seed: Annotated[int, Field(ge=0, description="seed of the initial weights and the boxes")] = 0

    def __post_init__(self) -> None:
        if self.every > self.steps:
            raise ValueError(f"every = {self.every} is more than steps = {self.steps}")

    @property
    def focus_share(self) -> float:
        """Fraction of the boxes placed on `Task.focus`; a task names a setting by its focus."""
        return 0.0

    @property
    def augmentation(self) -> Augmentation | None:
        """Random changes of the boxes of training; none by default."""
        return None


@dataclass(frozen=True, config=CHECKED)
class SegmentationOptimisationConfig(OptimisationConfig):
    """Optimisation settings of tasks whose truth does not change with the signal."""

    augment: Annotated[
        bool,
        Field(
            description="whether noise, bias and b0 of the boxes vary, and directions are left out"
        ),
    ] = False

    @property
    def augmentation(self) -> Augmentation | None:
        """The default changes, if there are any."""
        return Augmentation() if self.augment else None


@dataclass(frozen=True, config=CHECKED)
class ShellOptimisationConfig(OptimisationConfig):
    """Optimisation settings, with other defaults, for networks that take `ShellConfig`."""

    learning_rate: _Rate = 4e-3
    box_size: _BoxSize = 12
    n_boxes: _Boxes = 2


@dataclass(frozen=True, config=CHECKED)
class SplitConfig:
    """Choice of the validation participants, which are not trained on."""

    validation: Annotated[
        tuple[str, ...] | None,
        Field(
            min_length=1,
            description='their labels, such as ["03", "07"]; by default drawn by share and seed',
        ),
    ] = None
    share: Annotated[
        float, Field(gt=0, lt=1, description="fraction of the participants, at least one")
    ] = 0.2
    seed: Annotated[int, Field(ge=0, description="seed of the draw")] = 0


@dataclass(frozen=True, config=CHECKED)
class NotesConfig:
    """Notes in the weights file."""

    data: Annotated[str, Field(description="training data; by default the name of the dataset")] = (
        ""
    )
    caution: Annotated[str, Field(description="caution, shown whenever the weights are used")] = (
        "for research only, not for diagnosis"
    )


@dataclass(frozen=True, config=CHECKED)
class TrainingConfig:
    """All settings of a training; each section of the file is an attribute.

    A task replaces a section by a dataclass with more fields.
    """

    network: NetworkConfig = field(default_factory=NetworkConfig)
    training: OptimisationConfig = field(default_factory=OptimisationConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    notes: NotesConfig = field(default_factory=NotesConfig)


Config = TypeVar("Config", bound=TrainingConfig)


def read_config(path: Path, kind: type[Config]) -> Config:
    """Read the settings of a training.

    Parameters
    ----------
    path : Path
        A TOML file such as that of `example_config`.
    kind : type
        `TrainingConfig`, or the settings class of a task.

    Raises
    ------
    ConfigError
        If it is missing, not valid TOML, or has an invalid key or value.
    """
    return parse_config(_read(path), str(path), kind)


def network_keys(path: Path) -> frozenset[str]:
    """The keys of the section ``[network]`` that a settings file gives.

    Raises
    ------
    ConfigError
        If it is missing, or not valid TOML.
    """
    section = json.loads(_content(_read(path), str(path))).get("network", {})
    return frozenset(section if isinstance(section, dict) else ())


def _read(path: Path) -> str:
    try:
        return read_text(path, MAX_CONFIG_BYTES)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}.") from error
    except ValueError as error:
        raise ConfigError(str(error)) from error


def parse_config(text: str, name: str, kind: type[Config]) -> Config:
    """Settings of a kind from the text of a TOML file; `name` is its name in errors.

    Raises
    ------
    ConfigError
        If it is not valid TOML, or has an invalid key or value.
    """
    content = _content(text, name)
    try:
        return TypeAdapter(kind).validate_json(content)
    except ValidationError as error:
        raise ConfigError(f"{name}: {_explain(error, kind)}") from error


def _content(text: str, name: str) -> str:
    """The settings as JSON."""
    try:
        # from JSON, pydantic converts lists to tuples and tables to dataclasses in strict mode
        content = json.dumps(tomllib.loads(text), default=str)
        json.loads(content, parse_int=whole_number)
    except RecursionError:
        raise ConfigError(f"{name}: not a settings file: nested too deeply.") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{name}: not valid TOML: {error}.") from error
    except ValueError as error:
        raise ConfigError(f"{name}: a whole number has more than 64 bits.") from error
    return content


def example_config(kind: type[TrainingConfig]) -> str:
    """A TOML file with every setting of a kind, its default and its description.

    Examples
    --------
    >>> print(example_config(TrainingConfig))
    # Settings of tripq train. ...
    [training]
    # maximum number of optimiser steps
    steps = 5000
    # maximum hours of training; unlimited by default
    # hours =
    ...
    >>> text = example_config(TrainingConfig)
    >>> parse_config(text, "example", TrainingConfig) == TrainingConfig()
    True
    """
    lines = ["# Settings of tripq train.  Omitted keys have the values shown here."]
    defaults = kind()
    for section in fields(kind):
        values = getattr(defaults, section.name)
        if not fields(values):
            continue
        lines += ["", f"[{section.name}]"]
        for name, about in type(values).__pydantic_fields__.items():
            value = getattr(values, name)
            # TOML's strings, numbers and booleans are written as those of JSON
            shown = f"# {name} =" if value is None else f"{name} = {json.dumps(value)}"
            lines += [f"# {about.description}", shown]
    return "\n".join(lines) + "\n"


def _explain(error: ValidationError, kind: type[TrainingConfig]) -> str:
    """Describe the first error, in one line."""
    found = error.errors()[0]
    section, *key = (shortened(str(word)) for word in found["loc"][:2])
    place = f"[{section}] {key[0]}" if key else f"[{section}]"
    if found["type"] == "unexpected_keyword_argument":
        known = fields(kind)
        if key:
            known = fields(getattr(kind(), section))
        return f"{place}: no such key; known keys: {', '.join(name.name for name in known)}."
    if found["type"] == "value_error":
        return f"{place}: {found['ctx']['error']}."
    return f"{place}: {found['msg']}, not {reprlib.repr(found['input'])}."
