"""One file a protocol: its tests, how they are asked, its measures, and which of them a table shows.

Every module here that has a `PROTOCOL` is one, by the module's name; a new protocol is a new file and nothing else.
"""

from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from mega_pl.errors import MegaValueError
from mega_pl.protocols.base import Protocol
from mega_pl.protocols.measures import Combined, Mean, Measure, Score, format_value
from mega_pl.protocols.rows import EvalRow


def discover() -> dict[str, Protocol[Any, Any, Any]]:
    """The protocols of this package, by the names of their modules."""
    modules = {name: import_module(f"{__name__}.{name}") for _, name, _ in iter_modules(__path__)}
    return {name: module.PROTOCOL for name, module in modules.items() if hasattr(module, "PROTOCOL")}


PROTOCOLS = discover()
"""The protocols by name."""


def get_protocol(name: str) -> Protocol[Any, Any, Any]:
    """A protocol by its name.

    Raises:
        ValueError: If there is none of that name.
    """
    if name not in PROTOCOLS:
        raise MegaValueError(f"a protocol must be one of {', '.join(PROTOCOLS)}, but got {name!r}.")
    return PROTOCOLS[name]


__all__ = [
    "PROTOCOLS",
    "Combined",
    "EvalRow",
    "Mean",
    "Measure",
    "Protocol",
    "Score",
    "discover",
    "format_value",
    "get_protocol",
]
