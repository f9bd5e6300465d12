"""Other names of subjects that EasyEdit (arXiv:2308.07269) adds to the edits of other files."""

from collections.abc import Mapping
from dataclasses import replace

from mega_pl.data.records import Record
from mega_pl.edits.request import SLOT, EditCase, Probe


def add(cases: Mapping[str, EditCase], record: Record) -> EditCase | None:
    """The case of ``case_id`` with the ``alternative_subject`` as an alias, of which its prompt is asked too.

    None if it is no case of these.
    """
    case = cases.get(record.identifier("case_id"))
    if case is None:
        return None
    alias, request = record.text("alternative_subject"), case.request
    probe = Probe(prompt=request.prompt.replace(SLOT, alias), answers=(request.target_new,))
    return replace(
        case,
        request=replace(request, aliases=(*request.aliases, alias)),
        subject_aliasing=(*case.subject_aliasing, probe),
    )
