"""KnowEdit (arXiv:2401.01286): RippleEdits and zsRE in a layout of its own."""

from collections.abc import Iterator
from pathlib import Path

from mega_pl.data.popular import Edited, find_cloze, is_first_hop
from mega_pl.data.records import AskModel, Cases, OnBad, Record, read_cases, to_template
from mega_pl.data.ripple import aliases, probes, query, ripple_test
from mega_pl.edits.request import EditCase, EditRequest, Query, RippleAxis, RippleTest
from mega_pl.errors import MegaValueError
from mega_pl.functional.text import canonical


def read_knowedit(path: str | Path, *, on_bad: OnBad = "raise", ask: AskModel | None = None) -> Cases:
    """Read KnowEdit's WikiData_counterfact, WikiData_recent or ZsRE.

    KnowEdit keeps neither conditions nor the two kinds of two-hop test apart (both are ``Reasoning``): a test is
    Compositionality_I where its prompt names the edited object by the edited fact, else Compositionality_II, and
    conditions are rebuilt and aliases recovered as `read_rippleedits` does. Tests without an answer are left out, and
    so is ``generate_prompt`` (questions written by a language model): a phrasing has to end right before the object.
    ``rephrase`` or ``rephrase_prompt`` become paraphrases.

    WikiData_recent adds facts, so that its records have no ``ground_truth``: it is asked of a model, see
    `read_rippleedits`. Of a list the first entry is taken that is not the new object.

    Args:
        path: A JSON list of records, or one record a line.
        on_bad: Whether a malformed record raises, or is left out with a warning.
        ask: What a bare model completes a prompt with.

    Returns:
        The cases in file order; ``edit_id`` is ``case_id`` where records have it, else the 0-based place in the
        file.

    Raises:
        ValueError: Naming file, record and field, if one is malformed or an id comes twice.
    """
    return read_cases(path, lambda record, index: _case(record, index, ask), on_bad)


def _case(record: Record, index: int, ask: AskModel | None) -> EditCase:
    subject, filled, new = record.text("subject"), record.text("prompt"), record.text("target_new")
    identifier, template = find_cloze(filled, subject)
    template = template or to_template(filled, subject) or ""
    if not template:
        raise MegaValueError(f"`prompt` must contain the subject {subject!r} exactly once, but got {filled!r}.")
    truths = record.some("ground_truth") or ((ask(filled),) if ask else ())
    if not truths:
        raise MegaValueError("`ground_truth` must tell the object before, but is missing; give `ask` to ask a model.")
    tests = tuple(_tests(record, Edited(template, subject, new)))
    request = EditRequest(
        edit_id=record.identifier("case_id", default=index),
        prompt=template,
        subject=subject,
        target_new=new,
        target_true=next((truth for truth in truths if canonical(truth) != canonical(new)), new),
        relation=identifier,
        aliases=aliases(tests, template),
    )
    return EditCase(
        request=request,
        paraphrase_prompts=record.some("rephrase", "rephrase_prompt"),
        relation_specificity=probes(tests, "Relation_Specificity"),
        compositionality_1=probes(tests, "Compositionality_I"),
        compositionality_2=probes(tests, "Compositionality_II"),
        subject_aliasing=probes(tests, "Subject_Aliasing"),
        ripple=tests,
    )


def _tests(record: Record, edited: Edited) -> Iterator[RippleTest]:
    """The axes in RippleEdits' order."""
    portability, locality = record.child("portability"), record.child("locality")
    reasoning = list(_queries(portability, "Reasoning"))
    lists: dict[RippleAxis, list[Query]] = {
        "Relation_Specificity": list(_queries(locality, "Relation_Specificity")),
        "Logical_Generalization": list(_queries(portability, "Logical_Generalization")),
        "Subject_Aliasing": list(_queries(portability, "Subject_Aliasing")),
        "Compositionality_I": [asked for asked in reasoning if is_first_hop(asked.prompt, edited)],
        "Compositionality_II": [asked for asked in reasoning if not is_first_hop(asked.prompt, edited)],
        "Forgetfulness": list(_queries(locality, "Forgetfulness")),
    }
    for axis, queries in lists.items():
        yield from (test for asked in queries if (test := ripple_test(axis, [asked], edited)))


def _queries(record: Record, axis: str) -> Iterator[Query]:
    for test in record.children(axis):
        asked = query(test.text("prompt"), test.groups("ground_truth"))
        if asked:
            yield asked
