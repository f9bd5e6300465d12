"""zsRE in the schema of MEND (arXiv:2110.11309): questions, each with a counterfactual answer."""

from dataclasses import replace

from mega_pl.data.questions import QuestionForm, phrasings, pose
from mega_pl.data.readers.portability import question as portability
from mega_pl.data.records import Record, to_template
from mega_pl.data.sources import Source
from mega_pl.edits.request import EditCase, EditRequest, Probe
from mega_pl.errors import MegaValueError
from mega_pl.functional.text import canonical

SOURCES = (
    Source(
        name="zsre",
        file="https://rome.baulab.info/data/dsets/zsre_mend_eval.json",
        sha256="8a371d512f8a6ab175db4ef672181d5c0e52da23298cb51e5a2eeea2f89aa9cd",
    ),
)

_NATURAL = "nq question: "
"""Stands before the locality questions, which are from Natural Questions."""


def parse(record: Record, index: int, *, question_form: QuestionForm = "bare") -> EditCase:
    """The case of a record.

    The edit prompt is the question ``src``, after which the answer follows; ``alt`` is the new object and the first
    of ``answers`` that differs from it the true one. ``pred``, what one model once answered, is not read.
    ``rephrase`` is the paraphrase, ``loc`` with ``loc_ans`` the locality (as published, with "nq question: " in
    front), and ``portability`` (EasyEdit's) a question that builds on the edit. In some published records ``alt`` is
    the only right answer: such an edit changes nothing and is refused.

    With ``question_form="qa"`` all of these questions are put between "Q:" and "A:", those of locality without their
    "nq question: ", and the bare ``src`` is a phrasing of the edit.
    """
    subject, question, new = record.text("subject"), record.text("src"), record.text("alt")
    template = to_template(question, subject)
    if template is None:
        raise MegaValueError(f"`src` must contain the subject {subject!r} exactly once, but got {question!r}.")
    answers = record.texts("answers")
    if not answers:
        raise record.refusal("answers", "a list of at least one string", None)
    request = EditRequest(
        edit_id=record.identifier("case_id", default=index),
        prompt=pose(template, question_form),
        subject=subject,
        target_new=new,
        target_true=next((answer for answer in answers if canonical(answer) != canonical(new)), new),
        phrasings=phrasings(template, question_form),
    )
    local = record.text("loc", default="")
    probes = [Probe(prompt=local, answers=(record.text("loc_ans"),))] if local else []
    builds = [portability(record)] if record.child("portability").names() else []
    return EditCase(
        request=request,
        paraphrase_prompts=tuple(pose(text, question_form) for text in record.first_texts("rephrase")),
        locality=tuple(_posed(probe, question_form) for probe in probes),
        portability=tuple(_posed(probe, question_form) for probe in builds),
    )


def _posed(probe: Probe, form: QuestionForm) -> Probe:
    question = probe.prompt if form == "bare" else probe.prompt.removeprefix(_NATURAL)
    return replace(probe, prompt=pose(question, form))
