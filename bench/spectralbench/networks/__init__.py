"""The networks of the papers, found by walking this folder for `NETWORKS`, and the layers that they can be given.

Built with torch's own layers; `layers.applied` turns the convolutions of any of them, or of a reader's own model, to
another kind. Parameters are named as torchvision names them where it has the network.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from spectralbench.networks.network import Network
from spectralbench.text import meant
from spectralkernels.errors import RangeError


@cache
def load_networks() -> dict[str, Network]:
    """Every network by name; adding a file adds its networks everywhere, deleting the file removes them."""
    found: dict[str, Network] = {}
    for module_info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{module_info.name}")
        found.update({network.name: network for network in getattr(module, "NETWORKS", ())})
    return found


def load_network(name: str) -> Network:
    """The network of that name; RangeError with the nearest name and the known ones."""
    known = load_networks()
    if name not in known:
        raise RangeError(
            f"unknown network {name!r}{meant(name, known)}; a model of your own is package.module:function"
        )
    return known[name]
