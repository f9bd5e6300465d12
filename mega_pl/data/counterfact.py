"""CounterFact in the full schema of ROME (arXiv:2202.05262), with the lists that SAKE adds to a record."""

from pathlib import Path

from mega_pl.data.records import Cases, OnBad, Record, read_cases
from mega_pl.edits.request import EditCase, EditRequest


def read_counterfact(path: str | Path, *, on_bad: OnBad = "raise") -> Cases:
    """Read CounterFact records.

    Three fields more are read where a record has them: ``source_list`` (paraphrases of the edit prompt with the
    subject filled in, free to fit), ``implication_list`` and ``contrast_list`` (questions whose answers change with
    the edit, and questions about the subject that it must not change: lists of phrasings, filled or as templates).
    A phrasing in which the subject does not stand exactly once is left out, counted and named in a warning: texts
    written by a language model often miss it.

    Args:
        path: A JSON list of records, or one record a line.
        on_bad: Whether a malformed record raises, or is left out with a warning.

    Returns:
        The cases in file order; ``edit_id`` is the record's ``case_id``.

    Raises:
        ValueError: Naming file, record and field, if one is malformed or a ``case_id`` comes twice.
    """
    return read_cases(path, _case, on_bad)


def _case(record: Record, index: int) -> EditCase:
    rewrite = record.child("requested_rewrite")
    subject, prompt = rewrite.text("subject"), rewrite.text("prompt")
    request = EditRequest(
        edit_id=record.identifier("case_id"),
        prompt=prompt,
        subject=subject,
        target_new=rewrite.child("target_new").text("str"),
        target_true=rewrite.child("target_true").text("str"),
        relation=rewrite.text("relation_id", default=""),
        phrasings=record.templates("source_list", subject),
        implications=record.questions("implication_list", subject),
        contrasts=record.questions("contrast_list", subject),
    )
    return EditCase(
        request=request,
        paraphrase_prompts=record.texts("paraphrase_prompts"),
        neighborhood_prompts=record.texts("neighborhood_prompts"),
        attribute_prompts=record.texts("attribute_prompts"),
        generation_prompts=record.texts("generation_prompts"),
    )
