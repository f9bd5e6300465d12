"""One file a format: how its records become edits, or add to those of other files, and where it is published.

A reader is a module here, known by its name, with one of two functions:

- ``parse(record, index)`` gives the `EditCase` of a record, or several; ``index`` is its 0-based place in the file.
- ``add(cases, record)`` gives the case that a record speaks of, out of those by edit id, with what the record adds;
  None if it speaks of none of them.

A function that has a parameter ``language``, ``question_form`` or ``ask`` (a way to ask a model) is handed it.
``SOURCES``, where a module has it, lists the files that are published in its format. A new format is a new file.
"""

from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType

READERS: dict[str, ModuleType] = {name: import_module(f"{__name__}.{name}") for _, name, _ in iter_modules(__path__)}
"""The readers by the names of their formats."""

SOURCES = {source.name: (format, source) for format, of in READERS.items() for source in getattr(of, "SOURCES", ())}
"""The published files by name, each with its format."""

__all__ = ["READERS", "SOURCES"]
