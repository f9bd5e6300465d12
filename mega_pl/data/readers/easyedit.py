"""CounterFact in the flat schema of EasyEdit (arXiv:2308.07269): one paraphrase and one locality question an edit."""

from mega_pl.data.records import Record, to_template
from mega_pl.data.sources import Source
from mega_pl.edits.request import EditCase, EditRequest, Probe
from mega_pl.errors import MegaValueError
from mega_pl.functional.text import canonical

_COMMIT = "51d7402617c2e52bde0dc11b76e400c3725a181a"

SOURCES = (
    Source(
        name="counterfact_easyedit",
        file=f"https://raw.githubusercontent.com/Jometeorie/KnowledgeSpread/{_COMMIT}/data/counterfact/counterfact-edit.json",
        revision=_COMMIT,
    ),
)


def parse(record: Record, index: int) -> EditCase:
    """The case of a record.

    ``rephrase_prompt`` becomes the paraphrase, unless it repeats the edit prompt, and ``locality_prompt`` with
    ``locality_ground_truth`` the locality. Most of these rephrases are CounterFact's generation prompts, which do not
    ask for the object: measure generalization on ROME's file, joined by ``case_id``.
    """
    subject, filled = record.text("subject"), record.text("prompt")
    template = to_template(filled, subject)
    if template is None:
        raise MegaValueError(f"`prompt` must contain the subject {subject!r} exactly once, but got {filled!r}.")
    request = EditRequest(
        edit_id=record.identifier("case_id", default=index),
        prompt=template,
        subject=subject,
        target_new=record.text("target_new"),
        target_true=record.text("ground_truth"),
    )
    question = record.text("locality_prompt", default="")
    locality = (Probe(prompt=question, answers=(record.text("locality_ground_truth"),)),) if question else ()
    paraphrases = tuple(
        text for text in record.first_texts("rephrase_prompt") if canonical(text) != canonical(request.filled)
    )
    return EditCase(request=request, paraphrase_prompts=paraphrases, locality=locality)
