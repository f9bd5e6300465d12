"""Which edit of a bank, if any, a prompt is about: routers, and the runtime that puts their decisions into force."""

from mega_pl.edits.routing.centres import CentreRouter
from mega_pl.edits.routing.content import ContentRouter, RouterConfig
from mega_pl.edits.routing.router import NO_EDIT, Prompts, Route, Router
from mega_pl.edits.routing.runtime import RoutedEdits

__all__ = ["NO_EDIT", "CentreRouter", "ContentRouter", "Prompts", "Route", "RoutedEdits", "Router", "RouterConfig"]
