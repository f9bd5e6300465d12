"""CounterFact in the full schema of ROME (arXiv:2202.05262), with the lists that SAKE adds to a record."""

from mega_pl.data.records import Record
from mega_pl.data.sources import Source
from mega_pl.edits.request import EditCase, EditRequest

SOURCES = (
    Source(
        name="counterfact",
        file="https://rome.baulab.info/data/dsets/counterfact.json",
        sha256="d017056125178a13728594e66a801357a8db9ed7973a7425554bb4271de9fc6f",
    ),
)


def parse(record: Record, index: int) -> EditCase:
    """The case of a record; its ``edit_id`` is ``case_id``.

    Three fields more are read where a record has them: ``source_list`` (paraphrases of the edit prompt with the
    subject filled in, free to fit), ``implication_list`` and ``contrast_list`` (questions whose answers change with
    the edit, and questions about the subject that it must not change: lists of phrasings, filled or as templates).
    A phrasing in which the subject does not stand exactly once is left out, counted and named in a warning: texts
    written by a language model often miss it.
    """
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
