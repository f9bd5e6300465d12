"""A user's own edits, one JSON object a line."""

from dataclasses import fields
from pathlib import Path

from mega_pl.data.records import OnBad, Record, probe, read_cases
from mega_pl.edits.request import EditCase, EditRequest, Probe

_PROMPTS = ("paraphrase_prompts", "neighborhood_prompts")
_PROBES = ("relation_specificity", "compositionality_1", "compositionality_2", "subject_aliasing")
_KNOWN = frozenset({field.name for field in fields(EditRequest)}.union(_PROMPTS, _PROBES))


def read_jsonl(path: str | Path, *, on_bad: OnBad = "raise") -> list[EditCase]:
    """Read edits with the fields of `EditRequest` and, for evaluation, those of `EditCase`.

    A line needs ``edit_id``, ``prompt`` (with one ``{}``), ``subject``, ``target_new`` and ``target_true``; the
    rest may be left out. A probe is an object with ``prompt``, ``answers`` and, optionally, ``condition_prompt``
    and ``condition_answers``.

    Args:
        path: The file: one object a line, or a JSON list of them.
        on_bad: Whether a malformed record raises, or is left out with a warning.

    Returns:
        The cases in file order.

    Raises:
        ValueError: Naming file, line and field, if a field is malformed, missing or unknown, or an id comes twice.
    """
    return read_cases(path, _case, on_bad)


def _case(record: Record, index: int) -> EditCase:
    unknown = sorted(record.names() - _KNOWN)
    if unknown:
        raise ValueError(f"the fields must be among {', '.join(sorted(_KNOWN))}, but got {', '.join(unknown)}.")
    request = EditRequest(
        edit_id=record.identifier("edit_id"),
        prompt=record.text("prompt"),
        subject=record.text("subject"),
        target_new=record.text("target_new"),
        target_true=record.text("target_true"),
        relation=record.text("relation", default=""),
        phrasings=record.texts("phrasings"),
        implications=record.questions("implications", record.text("subject")),
        contrasts=record.questions("contrasts", record.text("subject")),
        mentions=record.mentions("mentions"),
    )
    return EditCase(
        request=request,
        paraphrase_prompts=record.texts("paraphrase_prompts"),
        neighborhood_prompts=record.texts("neighborhood_prompts"),
        relation_specificity=_probes(record, "relation_specificity"),
        compositionality_1=_probes(record, "compositionality_1"),
        compositionality_2=_probes(record, "compositionality_2"),
        subject_aliasing=_probes(record, "subject_aliasing"),
    )


def _probes(record: Record, axis: str) -> tuple[Probe, ...]:
    return tuple(_probe(item) for item in record.children(axis))


def _probe(item: Record) -> Probe:
    prompt, answers = item.text("prompt"), item.texts("answers")
    if not answers:
        raise item.refusal("answers", "a list of at least one string", None)
    return probe(prompt, answers, (item.text("condition_prompt", default=""), item.texts("condition_answers")))
