"""One-hop questions that EasyEdit (arXiv:2308.07269) adds to the edits of other files."""

from collections.abc import Mapping
from dataclasses import replace

from mega_pl.data.records import Record
from mega_pl.edits.request import EditCase, Probe


def add(cases: Mapping[str, EditCase], record: Record) -> EditCase | None:
    """The case of ``case_id`` with the question in ``portability``; None if it is no case of these."""
    case = cases.get(record.identifier("case_id"))
    return case and replace(case, portability=(*case.portability, question(record)))


def question(record: Record) -> Probe:
    """The ``New Question`` and the ``New Answer`` in the ``portability`` of a record."""
    fields = record.child("portability")
    return Probe(prompt=fields.text("New Question"), answers=(fields.text("New Answer"),))
