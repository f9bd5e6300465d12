"""KnowEdit (arXiv:2401.01286): RippleEdits and zsRE in a layout of its own."""

from collections.abc import Iterator

from mega_pl.data.popular import Edited, find_cloze, is_first_hop
from mega_pl.data.records import AskModel, Record, object_before, to_template
from mega_pl.data.ripple import aliases, probes, query, ripple_test
from mega_pl.data.sources import Source
from mega_pl.edits.request import EditCase, EditRequest, Query, RippleAxis, RippleTest
from mega_pl.errors import MegaValueError
from mega_pl.functional.text import canonical

_REPO, _COMMIT = "zjunlp/KnowEdit", "c3a6bccb5fc37a59dea3197ac36526d44606acd0"

SOURCES = (
    Source(
        name="knowedit_counterfact",
        file="benchmark/wiki_counterfact/test_cf.json",
        repo=_REPO,
        revision=_COMMIT,
        sha256="efc01ba398dfe04975939f729aab45523addb3c6b3cf41d7429ba5de1d45225b",
    ),
    Source(
        name="knowedit_recent",
        file="benchmark/wiki_recent/recent_test.json",
        repo=_REPO,
        revision=_COMMIT,
        sha256="e5c4ce6de1e8e2d10d892164ad6f4cbd28c976ed509e29e78ae853b01de1797b",
    ),
    Source(
        name="knowedit_zsre",
        file="benchmark/ZsRE/ZsRE-test-all.json",
        repo=_REPO,
        revision=_COMMIT,
        sha256="0e0214dda853a906ef02bef58c7ce2978af5a962e91fc4a10827e0125459905c",
    ),
)


def parse(record: Record, index: int, *, ask: AskModel | None = None) -> EditCase:
    """The case of a record of WikiData_counterfact, WikiData_recent or ZsRE.

    KnowEdit keeps neither conditions nor the two kinds of two-hop test apart (both are ``Reasoning``): a test is
    Compositionality_I where its prompt names the edited object by the edited fact, else Compositionality_II, and
    conditions are rebuilt and aliases recovered as for RippleEdits. Tests without an answer are left out, and
    so is ``generate_prompt`` (questions written by a language model): a phrasing has to end right before the object.
    ``rephrase`` or ``rephrase_prompt`` become paraphrases.

    WikiData_recent adds facts, so that its records have no ``ground_truth``; ``ask`` then asks a
    model. Of a list the first entry is taken that is not the new object.
    """
    subject, filled, new = record.text("subject"), record.text("prompt"), record.text("target_new")
    identifier, template = find_cloze(filled, subject)
    template = template or to_template(filled, subject) or ""
    if not template:
        raise MegaValueError(f"`prompt` must contain the subject {subject!r} exactly once, but got {filled!r}.")
    truths = record.first_texts("ground_truth") or (object_before(filled, "ground_truth", ask),)
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
        paraphrase_prompts=record.first_texts("rephrase", "rephrase_prompt"),
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
        "Compositionality_I": [question for question in reasoning if is_first_hop(question.prompt, edited)],
        "Compositionality_II": [question for question in reasoning if not is_first_hop(question.prompt, edited)],
        "Forgetfulness": list(_queries(locality, "Forgetfulness")),
    }
    for axis, queries in lists.items():
        yield from (test for question in queries if (test := ripple_test(axis, [question], edited)))


def _queries(record: Record, axis: str) -> Iterator[Query]:
    for test in record.children(axis):
        question = query(test.text("prompt"), test.groups("ground_truth"))
        if question:
            yield question
