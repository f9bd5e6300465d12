"""RippleEdits (arXiv:2307.12976) in its own JSON layout, with labels and missing conditions resolved offline."""

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import takewhile
from typing import NamedTuple, get_args

from mega_pl.data.popular import CLOZES, Edited, find_cloze
from mega_pl.data.records import AskModel, Record, object_before, to_template
from mega_pl.data.ripple import aliases, probes, query, ripple_test
from mega_pl.data.sources import Source
from mega_pl.edits.request import EditCase, EditRequest, Query, RippleAxis, RippleTest
from mega_pl.errors import MegaValueError
from mega_pl.functional.text import between

_COMMIT = "21182d13b6ddaa50f023052d13ff59e279deec05"
_FOLDER = f"https://github.com/edenbiran/RippleEdits/raw/{_COMMIT}/data/benchmark"

SOURCES = (
    Source(name="popular", file=f"{_FOLDER}/popular.json", revision=_COMMIT),
    Source(name="random", file=f"{_FOLDER}/random.json", revision=_COMMIT),
    Source(
        name="recent",
        file=f"{_FOLDER}/recent.json",
        revision=_COMMIT,
        sha256="bc71807ea72280e2587bd1974fc79ae7e23aa24b1d5887bcdced40d448910547",
    ),
)

_SPELLINGS = {"Relation_Specificity": "Relation_Specifity"}
"""The benchmark's description spells one list otherwise than its code."""


class _Labels(NamedTuple):
    cloze: str
    subject: str
    target_new: str
    target_true: str


def parse(record: Record, index: int, *, ask: AskModel | None = None) -> EditCase:
    """The case of a record of Random, Recent or Popular.

    The published file has Wikidata ids but no labels. They are read off the edit's two sentences with the cloze of
    its relation; for another relation the cloze is the words that both sentences start with, and the subject
    has to be given. Label fields win where a record has them: ``edit.subject``, ``edit.cloze``,
    ``edit.target_new`` (or ``target``) and ``edit.original_fact.ground_truth`` (or ``target``); the original fact
    may also be called ``previous_fact``.

    Recent adds facts, so that its records have no original fact: ``ask`` then asks a model for the object before.

    A query without an answer is left out, and a test without a query. Conditions that the file leaves out are rebuilt
    by rule; where no rule applies the test is not ``filterable``. The names under which Subject_Aliasing asks the edit
    prompt become aliases of its subject. The four axes that SAKE asks also become probes,
    of the first query, first condition and first answer of each test.
    """
    edit = record.child("edit")
    labels = _labels(edit, ask)
    identifier, template = find_cloze(labels.cloze, labels.subject)
    name = edit.text("relation", default="")
    request = EditRequest(
        edit_id=record.identifier("case_id", default=index),
        prompt=template or _template(labels),
        subject=labels.subject,
        target_new=labels.target_new,
        target_true=labels.target_true,
        relation=identifier or name,
    )
    tests = tuple(_tests(record, Edited(request.prompt, request.subject, request.target_new)))
    return EditCase(
        request=replace(request, aliases=aliases(tests, request.prompt)),
        relation_specificity=probes(tests, "Relation_Specificity"),
        compositionality_1=probes(tests, "Compositionality_I"),
        compositionality_2=probes(tests, "Compositionality_II"),
        subject_aliasing=probes(tests, "Subject_Aliasing"),
        ripple=tests,
    )


def _labels(edit: Record, ask: AskModel | None) -> _Labels:
    """The labels from their own fields, else from the edit's and the original fact's sentences."""
    relation, sentence = edit.text("relation", default=""), edit.text("prompt").removesuffix(".")
    fact = edit.child("original_fact", "previous_fact")
    original = fact.text("prompt").removesuffix(".") if fact.names() else ""
    new = edit.text("target_new", "target", default="")
    shared = between(sentence, "", f" {new}") if new else None
    if new and shared is None:
        raise MegaValueError(f"`edit.prompt` must end with the new object {new!r}, but got {sentence!r}.")
    parts = _read_off(relation, sentence, original)
    cloze = edit.text("cloze", default=parts.cloze if shared is None else shared)
    if fact.names():
        true = fact.text("ground_truth", "target", default=parts.target_true)
    else:
        true = object_before(cloze, "edit.original_fact", ask)
    labels = _Labels(cloze, edit.text("subject", default=parts.subject), new or parts.target_new, true)
    if not labels.subject:
        raise MegaValueError(
            f"`edit.subject` must be given where no known cloze fits, but is missing for {sentence!r}."
        )
    return labels


def _read_off(relation: str, sentence: str, original: str) -> _Labels:
    """Split both sentences by the relation's cloze, or (without a subject) after the words they share."""
    cloze = CLOZES.get(relation, ("", ""))[1]
    pattern = re.escape(cloze).replace(re.escape("{}"), "(.+?)") + " (.*)"
    new, true = (re.fullmatch(pattern, text) if cloze else None for text in (sentence, original))
    if new and (true or not original):
        return _Labels(cloze.replace("{}", new[1]), new[1], new[2], true[2] if true else "")
    pairs = zip(sentence.split(" ")[:-1], original.split(" ")[:-1], strict=False)
    shared = " ".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return _Labels(shared, "", sentence[len(shared) :].strip(), original[len(shared) :].strip())


def _template(labels: _Labels) -> str:
    template = to_template(labels.cloze, labels.subject)
    if template is None:
        raise MegaValueError(
            f"`edit.prompt` must contain the subject exactly once, but {labels.subject!r} does not in {labels.cloze!r}."
        )
    return template


def _tests(record: Record, edited: Edited) -> Iterator[RippleTest]:
    axes: tuple[RippleAxis, ...] = get_args(RippleAxis)
    for axis in axes:
        for test in record.children(axis, _SPELLINGS.get(axis, axis)):
            queries = [_query(item) for item in test.children("test_queries")]
            given = [_query(item) for item in test.children("condition_queries")]
            conditions = given if "condition_queries" in test.names() else None
            read = ripple_test(axis, queries, edited, conditions=conditions, every=_every(test))
            if read:
                yield read


def _every(test: Record) -> bool:
    """Whether all queries must be answered; the benchmark's default is any of them."""
    condition = test.text("test_condition", default="OR")
    if condition not in ("OR", "AND"):
        raise test.refusal("test_condition", "OR or AND", condition)
    return condition == "AND"


def _query(item: Record) -> Query | None:
    answers = item.children("answers")
    return query(item.text("prompt"), [(a.text("value"), *a.texts("aliases", blank=True)) for a in answers])
