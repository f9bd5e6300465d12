"""RippleEdits (arXiv:2307.12976) in its own JSON layout, with labels and missing conditions resolved offline."""

import re
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from mega_pl.data.popular import (
    CLOZES,
    Condition,
    Edited,
    condition_of_first_hop,
    condition_of_second_hop,
    find_cloze,
)
from mega_pl.data.records import OnBad, Record, probe, read_cases, to_template
from mega_pl.edits.request import EditCase, EditRequest, Probe


class _Labels(NamedTuple):
    cloze: str
    subject: str
    target_new: str
    target_true: str


def read_rippleedits(path: str | Path, *, on_bad: OnBad = "raise") -> list[EditCase]:
    """Read RippleEdits records.

    The published file has Wikidata ids but no labels. They are read off the edit's two sentences with the cloze of
    its relation; for another relation the cloze is the words that both sentences start with, and the subject
    has to be given. Label fields win where a record has them: ``edit.subject``, ``edit.cloze``,
    ``edit.target_new`` (or ``target``) and ``edit.original_fact.ground_truth`` (or ``target``).

    Of a test the first test query, the first condition query and the first answer (value and aliases) are read, as
    SAKE does; tests without an answer are left out. A missing condition is rebuilt by rule, or stays empty where
    the rule does not apply (idioms such as "maternal grandfather").

    Args:
        path: A JSON list of records, or one record a line.
        on_bad: Whether a malformed record raises, or is left out with a warning.

    Returns:
        The cases in file order; ``edit_id`` is ``case_id`` where records have it, else the 0-based place in the
        file.

    Raises:
        ValueError: Naming file, record and field, if one is malformed, a label cannot be told or an id comes twice.
    """
    return read_cases(path, _case, on_bad)


def _case(record: Record, index: int) -> EditCase:
    edit = record.child("edit")
    labels = _labels(edit)
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
    edited = Edited(request.prompt, request.subject, request.target_new)
    return EditCase(
        request=request,
        relation_specificity=_probes(record, "Relation_Specificity", edited),
        compositionality_1=_probes(record, "Compositionality_I", edited),
        compositionality_2=_probes(record, "Compositionality_II", edited),
        subject_aliasing=_probes(record, "Subject_Aliasing", edited),
    )


def _labels(edit: Record) -> _Labels:
    """The labels from their own fields, else from the edit's and the original fact's sentences."""
    fact = edit.child("original_fact")
    sentence, original = (side.text("prompt").removesuffix(".") for side in (edit, fact))
    told = _read_off(edit.text("relation", default=""), sentence, original)
    new = edit.text("target_new", "target", default="")
    if new and not sentence.endswith(f" {new}"):
        raise ValueError(f"`edit.prompt` must end with the new object {new!r}, but got {sentence!r}.")
    labels = _Labels(
        cloze=edit.text("cloze", default=sentence.removesuffix(f" {new}") if new else told.cloze),
        subject=edit.text("subject", default=told.subject),
        target_new=new or told.target_new,
        target_true=fact.text("ground_truth", "target", default=told.target_true),
    )
    if not labels.subject:
        raise ValueError(f"`edit.subject` must be given where no known cloze fits, but is missing for {sentence!r}.")
    return labels


def _read_off(relation: str, sentence: str, original: str) -> _Labels:
    """Split both sentences by the relation's cloze, or (without a subject) after the words they share."""
    cloze = CLOZES.get(relation, ("", ""))[1]
    pattern = re.escape(cloze).replace(re.escape("{}"), "(.+?)") + " (.*)"
    new, true = (re.fullmatch(pattern, text) if cloze else None for text in (sentence, original))
    if new and true:
        return _Labels(cloze.replace("{}", new[1]), new[1], new[2], true[2])
    pairs = zip(sentence.split(" ")[:-1], original.split(" ")[:-1], strict=False)
    shared = " ".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return _Labels(shared, "", sentence[len(shared) :].strip(), original[len(shared) :].strip())


def _template(labels: _Labels) -> str:
    template = to_template(labels.cloze, labels.subject)
    if template is None:
        raise ValueError(
            f"`edit.prompt` must contain the subject exactly once, but {labels.subject!r} does not in {labels.cloze!r}."
        )
    return template


def _probes(record: Record, axis: str, edited: Edited) -> tuple[Probe, ...]:
    found = []
    for test in record.children(axis):
        queries = test.children("test_queries")
        prompt, answers = _query(queries[0]) if queries else ("", ())
        if answers:
            conditions = test.children("condition_queries")
            condition = _query(conditions[0]) if conditions else ("", ())
            found.append(probe(prompt, answers, condition if condition[1] else _rebuilt(axis, prompt, answers, edited)))
    return tuple(found)


def _query(query: Record) -> Condition:
    """A query's prompt, and the value and aliases of its first answer."""
    answers = query.children("answers")
    if not answers:
        return query.text("prompt"), ()
    texts = (answers[0].text("value"), *answers[0].texts("aliases", blank=True))
    return query.text("prompt"), tuple(text for text in texts if text)


def _rebuilt(axis: str, prompt: str, answers: tuple[str, ...], edited: Edited) -> Condition:
    if axis == "Compositionality_I":
        return condition_of_first_hop(prompt, answers, edited)
    if axis == "Compositionality_II":
        return condition_of_second_hop(prompt, edited)
    return prompt, answers
