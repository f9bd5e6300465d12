"""CounterFact in the flat schema of EasyEdit (arXiv:2308.07269), and two files that EasyEdit adds to its edits."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from mega_pl.data.records import AskModel, Cases, OnBad, Record, read_cases, read_each, to_template
from mega_pl.edits.request import SLOT, EditCase, EditRequest, Probe
from mega_pl.errors import MegaValueError
from mega_pl.functional.text import canonical


def read_easyedit(path: str | Path, *, on_bad: OnBad = "raise", ask: AskModel | None = None) -> Cases:
    """Read CounterFact in EasyEdit's schema, or WikiBigEdit in it: one paraphrase and one locality question an edit.

    ``rephrase_prompt`` becomes the paraphrase, unless it repeats the edit prompt, and ``locality_prompt`` with
    ``locality_ground_truth`` the locality. Most of these rephrases are CounterFact's generation prompts, which do not
    ask for the object: measure generalization on ROME's file, joined by ``case_id``.

    WikiBigEdit (arXiv:2503.05683) adds facts, so that its records have no ``ground_truth``: it is asked of a model, see
    `read_rippleedits`.

    Args:
        path: A JSON list of records, or one record a line.
        on_bad: Whether a malformed record raises, or is left out with a warning.
        ask: What a bare model completes a prompt with.

    Returns:
        The cases in file order; ``edit_id`` is ``case_id`` where records have it, else the 0-based place in the
        file.

    Raises:
        ValueError: Naming file, record and field, if one is malformed or an id comes twice.
    """
    return read_cases(path, lambda record, index: _case(record, index, ask), on_bad)


def _case(record: Record, index: int, ask: AskModel | None) -> EditCase:
    subject, filled = record.text("subject"), record.text("prompt")
    template = to_template(filled, subject)
    if template is None:
        raise MegaValueError(f"`prompt` must contain the subject {subject!r} exactly once, but got {filled!r}.")
    truth = record.text("ground_truth", default="") or (ask(filled) if ask else "")
    if not truth:
        raise MegaValueError("`ground_truth` must tell the object before, but is missing; give `ask` to ask a model.")
    request = EditRequest(
        edit_id=record.identifier("case_id", default=index),
        prompt=template,
        subject=subject,
        target_new=record.text("target_new"),
        target_true=truth,
    )
    question = record.text("locality_prompt", default="")
    locality = (Probe(prompt=question, answers=(record.text("locality_ground_truth"),)),) if question else ()
    paraphrases = tuple(text for text in record.some("rephrase_prompt") if canonical(text) != canonical(request.filled))
    return EditCase(request=request, paraphrase_prompts=paraphrases, locality=locality)


def add_portability(cases: Iterable[EditCase], path: str | Path, *, on_bad: OnBad = "raise") -> Cases:
    """Add the one-hop questions of EasyEdit's portability file, by ``case_id``.

    Args:
        cases: The cases.
        path: Records of ``case_id`` and ``portability``, an object with ``New Question`` and ``New Answer``.
        on_bad: Whether a malformed record raises, or is left out with a warning.

    Returns:
        The cases in their order, with the refusals of the file; records of other cases are passed over.

    Raises:
        ValueError: Naming file, record and field, if one is malformed, or if the file speaks of none of the cases.
    """

    def add(case: EditCase, record: Record) -> EditCase:
        return replace(case, portability=(*case.portability, portability(record)))

    return _add(cases, path, add, on_bad)


def portability(record: Record) -> Probe:
    """The portability question of a record of EasyEdit's."""
    told = record.child("portability")
    return Probe(prompt=told.text("New Question"), answers=(told.text("New Answer"),))


def add_aliases(cases: Iterable[EditCase], path: str | Path, *, on_bad: OnBad = "raise") -> Cases:
    """Give each edit EasyEdit's other name for its subject, and ask its prompt of it too, by ``case_id``.

    Args:
        cases: The cases.
        path: Records of ``case_id`` and ``alternative_subject``.
        on_bad: Whether a malformed record raises, or is left out with a warning.

    Returns:
        The cases in their order, with the refusals of the file; records of other cases are passed over.

    Raises:
        ValueError: Naming file, record and field, if one is malformed, or if the file speaks of none of the cases.
    """

    def add(case: EditCase, record: Record) -> EditCase:
        alias, request = record.text("alternative_subject"), case.request
        probe = Probe(prompt=request.prompt.replace(SLOT, alias), answers=(request.target_new,))
        return replace(
            case,
            request=replace(request, aliases=(*request.aliases, alias)),
            subject_aliasing=(*case.subject_aliasing, probe),
        )

    return _add(cases, path, add, on_bad)


def _add(
    cases: Iterable[EditCase], path: str | Path, add: Callable[[EditCase, Record], EditCase], on_bad: OnBad
) -> Cases:
    known = {case.request.edit_id: case for case in cases}
    met: set[str] = set()

    def take(record: Record, index: int) -> None:
        edit_id = record.identifier("case_id")
        if edit_id in known:
            known[edit_id] = add(known[edit_id], record)
            met.add(edit_id)

    _, refusals = read_each(path, take, on_bad)
    if not met:
        raise MegaValueError(
            f"{path}: a record must have the `case_id` of one of the {len(known)} cases, but none has."
        )
    return Cases(known.values(), refusals)
