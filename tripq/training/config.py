r"""Settings of a training, read from a TOML file and checked.

Each section of the file is a dataclass here, and each key a field of it: `example_config` writes
them all with what they mean.

>>> TrainingConfig().training.learning_rate
0.01
>>> parse_config("[training]\nlearning_rat = 0.1", "train.toml")
Traceback (most recent call last):
...
tripq.training.config.ConfigError: train.toml: [training] learning_rat: no such key; ...
"""

from __future__ import annotations

import json
import reprlib
import sys
from dataclasses import field, fields
from inspect import signature
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from tripq.infra.files import read_text, shortened, whole_number
from tripq.so3.paths import Group, Selection
from tripq.tasks.lesions.segmenter import LesionSegmenter

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_CONFIG_BYTES = 2**14
"""Size of a file of settings, at most: `example_config` has a quarter of it.

The memory that a dotted key takes to parse grows with the square of its length: 4 GB at 64 kB."""

_CHECKED = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class ConfigError(ValueError):
    """A file of settings cannot be used; the message names the file and the key."""


def _default(name: str) -> Any:
    """Of an argument of `LesionSegmenter`."""
    return signature(LesionSegmenter).parameters[name].default


@dataclass(frozen=True, config=_CHECKED)
class NetworkConfig:
    """Arguments of `tripq.tasks.lesions.segmenter.LesionSegmenter`, with its defaults.

    Only the radius follows the voxels of the scans: a fixed one in mm would reach other neighbours
    on other grids.  On voxels of 2 mm it is the default of the network, too.
    """

    p_radius: Annotated[
        float | None,
        Field(
            gt=0,
            description="radius of the neighbourhood of a voxel in mm; by default 1.8 voxels, "
            "which reach the 26 around it",
        ),
    ] = None
    q_features: Annotated[
        str, Field(min_length=1, description="features of the first layer, as e3nn writes them")
    ] = _default("q_features")
    p_features: Annotated[
        str, Field(min_length=1, description="features of the layers that follow")
    ] = _default("p_features")
    n_p_layers: Annotated[
        int, Field(ge=0, description="how many layers follow, without the last")
    ] = _default("n_p_layers")
    batch_norm: Annotated[bool, Field(description="normalise the features of every layer")] = (
        _default("batch_norm")
    )
    q_max: Annotated[
        float,
        Field(
            gt=0,
            description="sqrt(b / 1000) of the highest b-value in s/mm2 that any scan has, now or "
            "later",
        ),
    ] = _default("q_max")
    filter: Annotated[
        str, Field(min_length=1, description="of the first layer; see PQTensorFieldLayer")
    ] = _default("filter")
    selection: Annotated[
        Selection, Field(description="which orders the first layer joins; see PQTensorFieldLayer")
    ] = _default("selection")
    group: Annotated[
        Group, Field(description="symmetries of the network: rotations, or reflections too")
    ] = _default("group")
    antipodal: Annotated[
        bool, Field(description="whether the sign of a gradient direction means nothing")
    ] = _default("antipodal")


@dataclass(frozen=True, config=_CHECKED)
class OptimisationConfig:
    """Arguments of `tripq.training.train` and of what it is given, with their defaults.

    They are written down here, as Lightning need not be installed to read a file of settings.
    """

    steps: Annotated[int, Field(ge=1, description="of the optimiser, at most")] = 5000
    hours: Annotated[
        float | None, Field(gt=0, description="of training, at most; by default any number")
    ] = None
    every: Annotated[int, Field(ge=1, description="steps between two validations")] = 100
    patience: Annotated[
        int, Field(ge=1, description="validations without a rise after which training stops")
    ] = 5
    rise: Annotated[
        float, Field(ge=0, lt=1, description="what the score must gain for it to count as one")
    ] = 0.0
    decay: Annotated[
        float,
        Field(ge=0, lt=1, description="of the running average of the weights, which is validated"),
    ] = 0.99
    warm_up: Annotated[int, Field(ge=1, description="steps in which the learning rate rises")] = 100
    falling: Annotated[
        bool,
        Field(description="whether it rises and falls with the budget instead: for known lengths"),
    ] = False
    learning_rate: Annotated[float, Field(gt=0, description="the highest; of AdamW")] = 1e-2
    weight_decay: Annotated[float, Field(ge=0, description="of AdamW")] = 1e-2
    positive_weight: Annotated[
        float, Field(gt=0, description="how many healthy voxels a lesion voxel counts for")
    ] = 1.0
    box_size: Annotated[int, Field(ge=1, description="edge of the boxes in voxels")] = 24
    n_boxes: Annotated[int, Field(ge=1, description="boxes in a step")] = 1
    lesion_share: Annotated[
        float, Field(ge=0, le=1, description="share of the boxes that lie on a lesion")
    ] = 0.5
    precision: Annotated[
        Literal["auto", "32-true", "bf16-mixed"],
        Field(
            description="32-true is exact; bf16-mixed is faster on processors with instructions "
            "for bfloat16, and many times slower on others; auto takes it on the former"
        ),
    ] = "32-true"
    seed: Annotated[int, Field(ge=0, description="of the first weights and of the boxes")] = 0

    def __post_init__(self) -> None:
        if self.every > self.steps:
            raise ValueError(f"every = {self.every} is more than steps = {self.steps}")


@dataclass(frozen=True, config=_CHECKED)
class SplitConfig:
    """Which participants are left out of training, to validate on."""

    validation: Annotated[
        tuple[str, ...] | None,
        Field(
            min_length=1,
            description='their labels, such as ["03", "07"]; by default drawn by share and seed',
        ),
    ] = None
    share: Annotated[float, Field(gt=0, lt=1, description="of the participants; at least one")] = (
        0.2
    )
    seed: Annotated[int, Field(ge=0, description="of the draw")] = 0


@dataclass(frozen=True, config=_CHECKED)
class NotesConfig:
    """What the file of weights says about itself."""

    data: Annotated[
        str, Field(description="what it was trained on; by default the name of the dataset")
    ] = ""
    caution: Annotated[str, Field(description="shown whenever the weights are used")] = (
        "for research only, not for diagnosis"
    )


@dataclass(frozen=True, config=_CHECKED)
class TrainingConfig:
    """All settings of a training; each section of the file is an attribute."""

    network: NetworkConfig = field(default_factory=NetworkConfig)
    training: OptimisationConfig = field(default_factory=OptimisationConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    notes: NotesConfig = field(default_factory=NotesConfig)


def read_config(path: Path) -> TrainingConfig:
    """Read the settings of a training.

    Parameters
    ----------
    path : Path
        A TOML file such as `example_config` gives.

    Raises
    ------
    ConfigError
        If it is missing, no TOML, or a key or a value is wrong.
    """
    try:
        text = read_text(path, MAX_CONFIG_BYTES)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}.") from error
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return parse_config(text, str(path))


def parse_config(text: str, name: str) -> TrainingConfig:
    """Settings from the text of a TOML file; `name` is what errors call it.

    Raises
    ------
    ConfigError
        If it is no TOML, or a key or a value is wrong.
    """
    try:
        # by way of JSON, which has lists and tables where tuples and dataclasses are wanted
        content = json.dumps(tomllib.loads(text), default=str)
        json.loads(content, parse_int=whole_number)
    except RecursionError:
        raise ConfigError(f"{name}: no TOML of settings: nested too deeply.") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{name}: no TOML: {error}.") from error
    except ValueError as error:
        raise ConfigError(f"{name}: a whole number has more than 64 bits.") from error
    try:
        return TypeAdapter(TrainingConfig).validate_json(content)
    except ValidationError as error:
        raise ConfigError(f"{name}: {_explain(error)}") from error


def example_config() -> str:
    """A TOML file with every setting, its default and what it means.

    Examples
    --------
    >>> print(example_config())
    # Settings of tripq train. ...
    [network]
    # radius of the neighbourhood of a voxel in mm; ...
    # p_radius =
    ...
    >>> parse_config(example_config(), "example") == TrainingConfig()
    True
    """
    lines = ["# Settings of tripq train.  What is left out has the value that stands here."]
    for section in fields(TrainingConfig):
        values = getattr(TrainingConfig(), section.name)
        lines += ["", f"[{section.name}]"]
        for name, about in type(values).__pydantic_fields__.items():
            value = getattr(values, name)
            # TOML's strings, numbers and booleans are written as those of JSON
            shown = f"# {name} =" if value is None else f"{name} = {json.dumps(value)}"
            lines += [f"# {about.description}", shown]
    return "\n".join(lines) + "\n"


def _explain(error: ValidationError) -> str:
    """What is wrong first of all, in one line."""
    found = error.errors()[0]
    section, *key = (shortened(str(word)) for word in found["loc"][:2])
    place = f"[{section}] {key[0]}" if key else f"[{section}]"
    if found["type"] == "unexpected_keyword_argument":
        known = fields(TrainingConfig)
        if key:
            known = fields(getattr(TrainingConfig(), section))
        return f"{place}: no such key; there are {', '.join(name.name for name in known)}."
    if found["type"] == "value_error":
        return f"{place}: {found['ctx']['error']}."
    return f"{place}: {found['msg']}, not {reprlib.repr(found['input'])}."
