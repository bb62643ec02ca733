"""The networks that a weights file can name.

A weights file contains the name of its network, not its code.  The name is looked up among the
networks of installed packages, which declare them as entry points of the group `GROUP`,

.. code-block:: toml

    [project.entry-points."tripq.networks"]
    MyNetwork = "my_package.networks:MyNetwork"

and among those that the program has registered:

>>> from torch import nn
>>> @register_network
... class Scaled(nn.Module):
...     def __init__(self, *, factor: float = 2.0) -> None:
...         super().__init__()
...         self.factor = factor
>>> find_network("Scaled")
<class 'tripq.networks.registry.Scaled'>
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import TypeVar

from torch import nn

#: Group of the entry points.
GROUP = "tripq.networks"

_registered: dict[str, type[nn.Module]] = {}

Network = TypeVar("Network", bound=type[nn.Module])


def register_network(network: Network) -> Network:
    """Let files name a network; a decorator.

    Parameters
    ----------
    network : type
        Keeps each argument of its constructor as an attribute of that name; all have defaults of
        JSON's types, or dataclasses of them, or are counts.  The constructor works on the meta
        device, too, where the sizes that a file names are checked before they take memory:
        ``with torch.device("meta"): MyNetwork()``.

    Raises
    ------
    ValueError
        If another network has this name.
    """
    name = network.__name__
    if (other := _registered.setdefault(name, network)) is not network:
        if (other.__module__, other.__qualname__) != (network.__module__, network.__qualname__):
            raise ValueError(f"the name {name} belongs to the network {other.__module__}.{name}")
        _registered[name] = network  # its module was run again, as in a notebook
    return network


def network_names() -> tuple[str, ...]:
    """The names that a file may give, sorted."""
    return tuple(sorted({*_registered, *(entry.name for entry in entry_points(group=GROUP))}))


def find_network(name: str) -> type[nn.Module]:
    """The network of a name.

    Raises
    ------
    LookupError
        If there is none.
    """
    if name in _registered:
        return _registered[name]
    for entry in entry_points(group=GROUP, name=name):
        network: type[nn.Module] = entry.load()
        return network
    raise LookupError(f"the network {name!r} is unknown")
