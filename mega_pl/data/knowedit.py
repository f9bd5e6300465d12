"""RippleEdits' Popular split in the layout of KnowEdit (arXiv:2401.01286), called WikiData_counterfact there."""

from collections.abc import Iterator
from pathlib import Path

from mega_pl.data.popular import (
    Edited,
    condition_of_first_hop,
    condition_of_second_hop,
    find_cloze,
    is_first_hop,
)
from mega_pl.data.records import OnBad, Record, probe, read_cases, to_template
from mega_pl.edits.request import EditCase, EditRequest, Probe


def read_knowedit(path: str | Path, *, on_bad: OnBad = "raise") -> list[EditCase]:
    """Read KnowEdit's copy of Popular.

    KnowEdit keeps neither conditions nor the two kinds of two-hop test apart (both are ``Reasoning``): a test is
    Compositionality_I where its prompt names the edited object by the edited fact, else Compositionality_II, and
    conditions are rebuilt as `read_rippleedits` does. Tests without an answer are left out. ``generate_prompt``
    (questions written by a language model) is not read: a phrasing has to end right before the object.

    Args:
        path: A JSON list of records, or one record a line.
        on_bad: Whether a malformed record raises, or is left out with a warning.

    Returns:
        The cases in file order; ``edit_id`` is ``case_id`` where records have it, else the 0-based place in the
        file.

    Raises:
        ValueError: Naming file, record and field, if one is malformed or an id comes twice.
    """
    return read_cases(path, _case, on_bad)


def _case(record: Record, index: int) -> EditCase:
    subject, filled = record.text("subject"), record.text("prompt")
    identifier, template = find_cloze(filled, subject)
    template = template or to_template(filled, subject) or ""
    if not template:
        raise ValueError(f"`prompt` must contain the subject {subject!r} exactly once, but got {filled!r}.")
    request = EditRequest(
        edit_id=record.identifier("case_id", default=index),
        prompt=template,
        subject=subject,
        target_new=record.text("target_new"),
        target_true=record.text("ground_truth"),
        relation=identifier,
    )
    edited = Edited(template, subject, request.target_new)
    portability, locality = record.child("portability"), record.child("locality")
    reasoning = list(_tests(portability, "Reasoning"))
    first = [test for test in reasoning if is_first_hop(test[0], edited)]
    second = [test for test in reasoning if not is_first_hop(test[0], edited)]
    return EditCase(
        request=request,
        relation_specificity=_same(locality, "Relation_Specificity"),
        compositionality_1=tuple(probe(p, a, condition_of_first_hop(p, a, edited)) for p, a in first),
        compositionality_2=tuple(probe(p, a, condition_of_second_hop(p, edited)) for p, a in second),
        subject_aliasing=_same(portability, "Subject_Aliasing"),
    )


def _same(record: Record, axis: str) -> tuple[Probe, ...]:
    """Probes whose condition is the test itself."""
    return tuple(probe(prompt, answers, (prompt, answers)) for prompt, answers in _tests(record, axis))


def _tests(record: Record, axis: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each test's prompt with its first answer and that answer's aliases."""
    for test in record.children(axis):
        for group in test.groups("ground_truth"):
            answers = tuple(text for text in group if text)
            if answers:
                yield test.text("prompt"), answers
                break
