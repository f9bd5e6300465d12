"""Edits: requests, fitted maps, gates and the bank that keeps them."""

from mega_pl.edits.request import EditCase, EditRequest, Probe

__all__ = ["EditCase", "EditRequest", "Probe"]
