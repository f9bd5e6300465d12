"""WikiBigEdit (arXiv:2503.05683) in EasyEdit's flat schema: questions about facts that are new."""

from mega_pl.data.questions import QuestionForm, phrasings, pose
from mega_pl.data.records import AskModel, Record, object_before, to_template
from mega_pl.edits.request import SLOT, EditCase, EditRequest, Probe
from mega_pl.errors import MegaValueError


def parse(record: Record, index: int, *, question_form: QuestionForm = "bare", ask: AskModel | None = None) -> EditCase:
    """The case of a record.

    The edit prompt is the question ``prompt``, after which ``target_new`` follows; ``rephrase_prompt`` is the
    paraphrase, and ``locality_prompt`` with ``locality_ground_truth`` the locality. A new fact has no object before:
    ``ask`` asks a model for what it says instead. A model that gives the new object already makes a record that
    changes nothing, which is refused.

    With ``question_form="qa"`` all of these questions are put between "Q:" and "A:", and the bare ``prompt`` is a
    phrasing of the edit.
    """
    subject, question = record.text("subject"), record.text("prompt")
    template = to_template(question, subject)
    if template is None:
        raise MegaValueError(f"`prompt` must contain the subject {subject!r} exactly once, but got {question!r}.")
    prompt = pose(template, question_form)
    request = EditRequest(
        edit_id=record.identifier("case_id", default=index),
        prompt=prompt,
        subject=subject,
        target_new=record.text("target_new"),
        target_true=object_before(prompt.replace(SLOT, subject), "ground_truth", ask),
        phrasings=phrasings(template, question_form),
    )
    local = record.text("locality_prompt", default="")
    probes = (
        [Probe(prompt=pose(local, question_form), answers=(record.text("locality_ground_truth"),))] if local else []
    )
    return EditCase(
        request=request,
        paraphrase_prompts=tuple(pose(text, question_form) for text in record.first_texts("rephrase_prompt")),
        locality=tuple(probes),
    )
