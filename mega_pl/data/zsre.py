"""zsRE in the schema of MEND (arXiv:2110.11309): questions, each with a counterfactual answer."""

from pathlib import Path

from mega_pl.data.easyedit import portability
from mega_pl.data.records import Cases, OnBad, Record, read_cases, to_template
from mega_pl.edits.request import EditCase, EditRequest, Probe
from mega_pl.errors import MegaValueError
from mega_pl.functional.text import canonical


def read_zsre(path: str | Path, *, on_bad: OnBad = "raise") -> Cases:
    """Read zsRE records.

    The edit prompt is the question ``src``, after which the answer follows; ``alt`` is the new object and the first
    of ``answers`` that differs from it the true one. ``pred``, what one model once answered, is not read.
    ``rephrase`` is the paraphrase, ``loc`` with ``loc_ans`` the locality (as published, with "nq question: " in
    front), and ``portability`` (EasyEdit's) a question that builds on the edit. In some published records ``alt`` is
    the only right answer: such an edit changes nothing and is refused.

    Args:
        path: A JSON list of records, or one record a line.
        on_bad: Whether a malformed record raises, or is left out with a warning.

    Returns:
        The cases in file order; ``edit_id`` is ``case_id`` where records have it, else the 0-based place in the
        file.

    Raises:
        ValueError: Naming file, record and field, if one is malformed or an id comes twice.
    """
    return read_cases(path, _case, on_bad)


def _case(record: Record, index: int) -> EditCase:
    subject, question, new = record.text("subject"), record.text("src"), record.text("alt")
    template = to_template(question, subject)
    if template is None:
        raise MegaValueError(f"`src` must contain the subject {subject!r} exactly once, but got {question!r}.")
    answers = record.texts("answers")
    if not answers:
        raise record.refusal("answers", "a list of at least one string", None)
    request = EditRequest(
        edit_id=record.identifier("case_id", default=index),
        prompt=template,
        subject=subject,
        target_new=new,
        target_true=next((answer for answer in answers if canonical(answer) != canonical(new)), new),
    )
    local = record.text("loc", default="")
    return EditCase(
        request=request,
        paraphrase_prompts=record.some("rephrase"),
        locality=(Probe(prompt=local, answers=(record.text("loc_ans"),)),) if local else (),
        portability=(portability(record),) if record.child("portability").names() else (),
    )
