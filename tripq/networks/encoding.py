"""What makes the encoder of one network exchangeable with that of another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from tripq.nn.bound import Bindable


class Encoding(Bindable):
    """Base of networks with an encoder: what another network can take from them.

    Two networks can exchange their encoders if both have the same `encoder_kind` and equal
    arguments of the encoder; see `tripq.networks.start`.

    Attributes
    ----------
    encoder_kind : str
        Name of the class that defines the encoder.
    encoder_parts : tuple of str
        Attributes that are modules or tensors of the encoder.
    encoder_arguments : mapping of str to str
        Arguments of the encoder, and the names by which the constructor of the network takes them.
    """

    encoder_kind: ClassVar[str]
    encoder_parts: ClassVar[tuple[str, ...]] = ("blocks",)
    encoder_arguments: ClassVar[Mapping[str, str]]

    @property
    def of_encoder(self) -> dict[str, Any]:
        """Values of the arguments of the encoder."""
        return {name: getattr(self, own) for name, own in self.encoder_arguments.items()}

    @property
    def encoder_modules(self) -> tuple[nn.Module, ...]:
        """The modules of the encoder."""
        parts = (getattr(self, name) for name in self.encoder_parts)
        return tuple(part for part in parts if isinstance(part, nn.Module))

    @property
    def encoder_tensors(self) -> dict[str, Tensor]:
        """Weights and statistics of the encoder, by their names in the state of the network."""
        return {
            name: tensor
            for name, tensor in self.state_dict().items()
            if name.split(".")[0] in self.encoder_parts
        }
