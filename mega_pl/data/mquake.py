"""MQuAKE (arXiv:2305.14795): multi-hop questions whose answers change with one or several edits."""

from pathlib import Path

from mega_pl.data.records import Cases, OnBad, Record, probe, read_cases
from mega_pl.edits.request import EditCase, EditRequest


def read_mquake(path: str | Path, *, on_bad: OnBad = "raise") -> Cases:
    """Read MQuAKE records.

    Each of a record's ``requested_rewrite`` becomes an edit of its own, ``CASE_ID-0``, ``CASE_ID-1`` and so on. The
    questions, which need all of them at once, are portability of the first; their answers are ``new_answer`` and
    ``new_answer_alias``. Records may contradict each other: edit one at a time, or choose some.

    Args:
        path: A JSON list of records, or one record a line.
        on_bad: Whether a malformed record raises, or is left out with a warning.

    Returns:
        The cases in file order, those of a record together.

    Raises:
        ValueError: Naming file, record and field, if one is malformed or a ``case_id`` comes twice.
    """
    return read_cases(path, _cases, on_bad)


def _cases(record: Record, index: int) -> list[EditCase]:
    case_id = record.identifier("case_id", default=index)
    rewrites = record.children("requested_rewrite")
    if not rewrites:
        raise record.refusal("requested_rewrite", "a list of at least one edit", None)
    answers = (record.text("new_answer"), *record.texts("new_answer_alias", blank=True))
    questions = tuple(probe(question, answers) for question in record.texts("questions"))
    return [
        EditCase(request=_request(rewrite, f"{case_id}-{i}"), portability=() if i else questions)
        for i, rewrite in enumerate(rewrites)
    ]


def _request(rewrite: Record, edit_id: str) -> EditRequest:
    return EditRequest(
        edit_id=edit_id,
        prompt=rewrite.text("prompt"),
        subject=rewrite.text("subject"),
        target_new=rewrite.child("target_new").text("str"),
        target_true=rewrite.child("target_true").text("str"),
        relation=rewrite.text("relation_id", default=""),
    )
