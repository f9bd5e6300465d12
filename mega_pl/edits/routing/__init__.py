"""Which edit of a bank, if any, a prompt is about: routers, and the runtime that puts their decisions into force.

Every class of a module here that has a `kind` of its own is a router, and stored with a bank under that name; a new one
is a new file and nothing else.
"""

from importlib import import_module
from pkgutil import iter_modules

from mega_pl.edits.routing.centres import CentreRouter
from mega_pl.edits.routing.content import ContentRouter, RouterConfig
from mega_pl.edits.routing.router import NO_EDIT, Prompts, Route, Router
from mega_pl.edits.routing.runtime import RoutedEdits


def discover() -> dict[str, type[Router]]:
    """The routers of this package, by the names of their kinds in files."""
    modules = [import_module(f"{__name__}.{name}") for _, name, _ in iter_modules(__path__)]
    classes = [value for module in modules for value in vars(module).values() if isinstance(value, type)]
    return dict(sorted({vars(router)["kind"]: router for router in classes if "kind" in vars(router)}.items()))


ROUTERS = discover()
"""The routers by kind."""

__all__ = [
    "NO_EDIT",
    "ROUTERS",
    "CentreRouter",
    "ContentRouter",
    "Prompts",
    "Route",
    "RoutedEdits",
    "Router",
    "RouterConfig",
]
