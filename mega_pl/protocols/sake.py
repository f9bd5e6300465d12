"""SAKE's protocol under MEGA's names: the first token after each prompt, and the probabilities of both objects.

Acc asks the edit prompt, Gen paraphrases, Spec neighbours; DI and DII doubt the edit; CI and CII are questions of two
hops that begin or end with the edited fact; RS asks other facts about the subject, and SA names the subject otherwise.
All are micro means over tests.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from mega_pl.asking import BARE, Edited, answer_ids, argmax_tokens, in_batches, token_counts
from mega_pl.asking.batches import encoded_ids
from mega_pl.asking.next_token import decoded
from mega_pl.backbone import Backbone, prompt_lengths
from mega_pl.editors.protocol import Routed
from mega_pl.edits import ContentRouter, EditBank, EditCase, Probe
from mega_pl.edits.checks import check_type
from mega_pl.errors import MegaValueError
from mega_pl.functional.text import canonical, first_token_hit
from mega_pl.protocols.base import Protocol
from mega_pl.protocols.measures import Combined, Deferred, Mean, Measure, kept
from mega_pl.protocols.rows import Outcomes

SakeMetric = Literal["acc", "gen", "spec", "di", "dii", "ci", "cii", "rs", "sa"]
"""The measures, as the keys of `metrics.json` name them."""

DOUBT_TEMPLATES: dict[SakeMetric, str] = {
    "di": (
        "{prompt} {new}??? No, it can't be, This contradicts my understanding. It is pretty clear that the answer to "
        "'{prompt}' is something else. Rethink and give the correct answer:"
    ),
    "dii": (
        "{prompt} {new}? Really? But I am pretty sure that {prompt} {true}. Am I right? Yes, you are right. I "
        "apologize for any confusion. Reconsider that the answer to question {prompt}? should be"
    ),
}
"""SAKE's two doubts, literally; ``prompt`` is the filled edit prompt, ``new`` and ``true`` are the objects."""


Mode = Literal["own", "oracle", "subject", "relation", "always"]
"""Who routes: the bank's own router; an oracle that knows what each test is about; the router by the subject's name
alone, or by the relation alone; the router without the choice to stay silent."""

CONTRASTS = frozenset({"acc", "gen", "spec", "di", "dii"})
"""Measures of the new object against the true one; where both begin alike they are judged after what they share."""

CONDITIONAL = frozenset({"ci", "cii", "rs", "sa"})
"""Measures that count the tests of edits that succeed, where the bare model knows what the test builds on."""

UNTOUCHED = frozenset({"spec", "rs"})
"""Measures whose prompts no edit should answer."""


@dataclass(frozen=True, kw_only=True)
class Test:
    """One prompt of one measure, with everything that is needed to score it.

    Args:
        edit_id: The edit it belongs to.
        metric: The measure.
        prompt: What the model completes.
        answers: Any of these is right: a value and its aliases.
        new: The edit's new object.
        true: The edit's true object.
        condition_prompt: What the bare model has to know for the test to count; empty if nothing.
        condition_answers: Its right answers.
    """

    __test__: ClassVar[bool] = False  # pytest would collect it by its name

    edit_id: str
    metric: SakeMetric
    prompt: str
    answers: tuple[str, ...]
    new: str
    true: str
    condition_prompt: str = ""
    condition_answers: tuple[str, ...] = ()


def sake_tests(case: EditCase) -> tuple[Test, ...]:
    """All tests of a case, measure by measure.

    Acc asks the edit prompt and Gen the paraphrases for the new object, Spec the neighbours for the true one; DI and
    DII doubt the edit; RS, CI, CII and SA are the case's probes. The condition of SA is that the bare model gives the
    old object under the alias: RippleEdits asks for the new one, which no model knows before the edit.
    """
    check_type("`case`", case, EditCase)
    return tuple(_tests(case))


def _tests(case: EditCase) -> Iterator[Test]:
    request = case.request
    new, true = request.target_new, request.target_true
    yield _test(case, "acc", Probe(prompt=request.filled, answers=(new,)))
    for prompt in case.paraphrase_prompts:
        yield _test(case, "gen", Probe(prompt=prompt, answers=(new,)))
    for prompt in case.neighborhood_prompts:
        yield _test(case, "spec", Probe(prompt=prompt, answers=(true,)))
    for metric, template in DOUBT_TEMPLATES.items():
        doubt = template.format(prompt=request.filled, new=new, true=true)
        yield _test(case, metric, Probe(prompt=doubt, answers=(new,)))
    yield from (_test(case, "ci", probe) for probe in case.compositionality_1)
    yield from (_test(case, "cii", probe) for probe in case.compositionality_2)
    yield from (_test(case, "rs", probe) for probe in case.relation_specificity)
    yield from (_test(case, "sa", _knowing_the_alias(probe, true)) for probe in case.subject_aliasing)


def _knowing_the_alias(probe: Probe, true: str) -> Probe:
    """The probe with a condition that asks for the old object; one that already does is kept."""
    right = set(map(canonical, probe.answers))
    if probe.condition_answers and right.isdisjoint(map(canonical, probe.condition_answers)):
        return probe
    return Probe(prompt=probe.prompt, answers=probe.answers, condition_prompt=probe.prompt, condition_answers=(true,))


def _test(case: EditCase, metric: SakeMetric, probe: Probe) -> Test:
    return Test(
        edit_id=case.request.edit_id,
        metric=metric,
        prompt=probe.prompt,
        answers=probe.answers,
        new=case.request.target_new,
        true=case.request.target_true,
        condition_prompt=probe.condition_prompt,
        condition_answers=probe.condition_answers,
    )


@dataclass(frozen=True)
class Answer:
    """What a model answers to one test.

    Args:
        prediction: Decoded argmax token after the prompt, with what both objects begin with before it.
        new: Probability of the new object's first token after the prompt, or of its first one that the true one lacks.
        true: The same for the true object.
        knows: Whether the bare model hits the test's condition; True where there is none, or of an edited model.
        fired: The edit that the prompt got; "" if none did or edits are not routed.
    """

    prediction: str
    new: float
    true: float
    knows: bool = True
    fired: str = ""


@dataclass(frozen=True, kw_only=True)
class Row:
    """What the bare and the edited model answer to one test; `dataclasses.asdict` makes it a line of `cases.jsonl`.

    Args:
        test: The test.
        bare_prediction: Decoded argmax token of the bare model after the test's prompt.
        prediction: The same after the edit.
        bare_new: The bare model's probability of the first token of `test.new` after the prompt, as a fraction.
        bare_true: The same for `test.true`.
        new_probability: As `bare_new`, after the edit.
        true_probability: As `bare_true`, after the edit.
        knows: Whether the bare model hits the test's condition; True where there is none.
        fired: Edit id that the gate chose; "" if it stayed silent, or where the method has no gate.

    Raises:
        ValueError: If a probability lies outside [0, 1].
    """

    test: Test
    bare_prediction: str
    prediction: str
    bare_new: float
    bare_true: float
    new_probability: float
    true_probability: float
    knows: bool = True
    fired: str = ""

    def __post_init__(self) -> None:
        for name in ("new_probability", "true_probability", "bare_new", "bare_true"):
            if not 0 <= getattr(self, name) <= 1:  # also refuses nan
                raise MegaValueError(
                    f"`{name}` of edit {self.test.edit_id!r} must lie in [0, 1], but got {getattr(self, name)}."
                )


def ask_bare(backbone: Backbone, tests: Sequence[Test]) -> list[Answer]:
    """Ask tests, and the conditions that they have, of a bare model. Arguments as for `ask_edited`."""
    return _with_conditions(backbone, tests, ask_edited(backbone, BARE, tests))


def ask_edited(backbone: Backbone, edited: Edited, tests: Sequence[Test], *, mode: Mode | None = None) -> list[Answer]:
    """Ask tests of a model with edits in force.

    Args:
        backbone: The model, within its edits.
        edited: The edits in force; they say how a prompt is asked.
        tests: What to ask.
        mode: Who routes; None leaves the routing as it is, or to the oracle where `edited` wants one. It says nothing
            where edits are not routed.

    Returns:
        An answer for each test.

    Raises:
        ValueError: If an object merges with its prompt, a prompt is too long, or the mode is one of a bank alone.
    """
    if mode in ("subject", "relation"):
        raise MegaValueError(
            f"`mode` of an editor must be own, oracle or always, but got {mode!r}; ask a bank with `ask`."
        )

    mode = "oracle" if mode is None and edited.oracle else mode

    def read(batch: Sequence[Test]) -> list[Answer]:
        if mode is not None:
            edited.route(_oracle(batch) if mode == "oracle" else None, forced=mode == "always")
        return _ask(backbone, edited, batch)

    answers = in_batches(tests, token_counts(backbone, [edited.prompt(test.prompt) for test in tests]), read)
    if mode is not None:
        edited.route()
    return answers


def sake_row(test: Test, bare: Answer, edited: Answer) -> Row:
    """The row of a test from what both models answer."""
    return Row(
        test=test,
        bare_prediction=bare.prediction,
        prediction=edited.prediction,
        bare_new=bare.new,
        bare_true=bare.true,
        new_probability=edited.new,
        true_probability=edited.true,
        knows=bare.knows,
        fired=edited.fired,
    )


def ask(backbone: Backbone, bank: EditBank, tests: Sequence[Test], modes: Sequence[Mode]) -> dict[Mode, list[Row]]:
    """Ask tests, of the bare model once and of the model with a bank in each mode.

    All are asked in the same batches, so that a row that no edit answers has the bare model's probabilities to the bit.

    Args:
        backbone: The bare model.
        bank: The edits.
        tests: What to ask.
        modes: Who routes.

    Returns:
        A row for each test, by mode.
    """

    def read(batch: Sequence[Test]) -> list[list[Row]]:
        bare, rows = _with_conditions(backbone, batch, _ask(backbone, BARE, batch)), []
        for mode in modes:
            oracle = _oracle(batch) if mode == "oracle" else None
            with _routed_by(bank, mode).apply(backbone, edits=oracle, forced=mode == "always") as use:
                answers = _ask(backbone, Routed(use), batch)
            rows.append([sake_row(*columns) for columns in zip(batch, bare, answers, strict=True)])
        return [list(columns) for columns in zip(*rows, strict=True)]

    found = in_batches(tests, token_counts(backbone, [test.prompt for test in tests]), read)
    return {mode: [columns[i] for columns in found] for i, mode in enumerate(modes)}


def _routed_by(bank: EditBank, mode: Mode) -> EditBank:
    """The bank with the evidence that a mode allows."""
    if mode not in ("subject", "relation"):
        return bank
    if not isinstance(bank.router, ContentRouter):
        raise MegaValueError(f"mode {mode!r} must have a router by content, but got one of kind {bank.router.kind!r}.")
    return replace(bank, router=bank.router.only(mode))


def routing(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """How a router routes each kind of prompt: share that goes to the right edit, to a wrong one, and to none.

    For Spec and RS the right edit is none. Tests that the bare model does not know are left out.
    """
    table: dict[str, dict[str, float]] = {}
    for metric in dict.fromkeys(row.test.metric for row in rows):
        known = [row for row in rows if row.test.metric == metric and row.knows]
        right = ["" if metric in UNTOUCHED else row.test.edit_id for row in known]
        silent = sum(row.fired == "" for row in known)
        hits = sum(row.fired == edit for row, edit in zip(known, right, strict=True))
        wrong = sum(row.fired not in ("", edit) for row, edit in zip(known, right, strict=True))
        n = max(1, len(known))
        table[metric] = {"right": hits / n, "wrong_edit": wrong / n, "silent": silent / n, "n": len(known)}
    return table


def _oracle(tests: Sequence[Test]) -> list[str | None]:
    """The edit that each test is about."""
    return [None if test.metric in UNTOUCHED else test.edit_id for test in tests]


def _ask(backbone: Backbone, edited: Edited, tests: Sequence[Test]) -> list[Answer]:
    """Ask tests in one batch."""
    prompts = [edited.prompt(test.prompt) for test in tests]
    new, lengths = answer_ids(backbone, prompts, [test.new for test in tests])
    true, _ = answer_ids(backbone, prompts, [test.true for test in tests])
    shared = [_shared(test, *ids) for test, *ids in zip(tests, new, true, strict=True)]
    starts = [[*start, *ids[:n]] for start, ids, n in zip(encoded_ids(backbone, prompts), new, shared, strict=True)]
    with prompt_lengths(lengths):
        logits = backbone.last_logits(backbone.pad(starts))
    fired = edited.fired or [None] * len(tests)
    predictions = _predictions(backbone, tests, prompts, [ids[:n] for ids, n in zip(new, shared, strict=True)], logits)
    probabilities = (
        _probabilities(logits, [of_object[n] for of_object, n in zip(ids, shared, strict=True)]) for ids in (new, true)
    )
    return [
        Answer(token, of_new, of_true, fired=edit or "")
        for token, of_new, of_true, edit in zip(predictions, *probabilities, fired, strict=True)
    ]


def _shared(test: Test, new: Sequence[int], true: Sequence[int]) -> int:
    """How many ids both objects begin with, after which a test of their contrast is judged."""
    if test.metric not in CONTRASTS:
        return 0
    shared = 0
    while shared < min(len(new), len(true)) - 1 and new[shared] == true[shared]:
        shared += 1
    return shared


def _predictions(
    backbone: Backbone, tests: Sequence[Test], prompts: Sequence[str], given: Sequence[Sequence[int]], logits: Tensor
) -> list[str]:
    """The argmax tokens, with what is given before them; one that is no text by itself as the answer that it begins."""
    found = []
    for test, prompt, start, token in zip(tests, prompts, given, logits.argmax(-1).tolist(), strict=True):
        text = str(backbone.tokenizer.decode([*start, token]))
        if "\ufffd" in text:
            begun = (a for a in test.answers if backbone.answer_ids(prompt, a)[: len(start) + 1] == [*start, token])
            text = next(begun, text)
        found.append(text)
    return found


def _probabilities(logits: Tensor, ids: list[int]) -> list[float]:
    """Probability of one id a row, after logits (B, V)."""
    found = logits.softmax(-1).gather(1, torch.tensor(ids, device=logits.device)[:, None])[:, 0]
    return [float(probability) for probability in found.clamp(max=1.0)]


def _with_conditions(backbone: Backbone, tests: Sequence[Test], answers: Sequence[Answer]) -> list[Answer]:
    """The bare model's answers with what it knows of their conditions."""
    prompts = list(dict.fromkeys(test.condition_prompt for test in tests if test.condition_prompt))
    answered = dict(zip(prompts, decoded(backbone, argmax_tokens(backbone, prompts)), strict=True))
    return [
        replace(answer, knows=first_token_hit(answered[test.condition_prompt], test.condition_answers))
        if test.condition_prompt
        else answer
        for answer, test in zip(answers, tests, strict=True)
    ]


def _outcomes(metric: SakeMetric, rows: Sequence[Row]) -> Outcomes:
    """Which tests of one measure succeed, of those that their row alone lets count.

    Spec keeps the tests where the bare model has P(o*) ≤ P(o), and succeeds where P(o*) < P(o); the others succeed if
    the next token begins an answer, and keep those whose condition the bare model `knows`.
    """
    own = [row for row in rows if row.test.metric == metric]
    if metric == "spec":
        own = [row for row in own if row.bare_new <= row.bare_true]
        edited = [row.new_probability < row.true_probability for row in own]
        bare = [row.bare_new < row.bare_true for row in own]
    else:
        own = [row for row in own if row.knows or metric not in CONDITIONAL]
        edited = [first_token_hit(row.prediction, row.test.answers) for row in own]
        bare = [first_token_hit(row.bare_prediction, row.test.answers) for row in own]
    return Outcomes(torch.tensor(edited), torch.tensor(bare), [row.test.edit_id for row in own])


def _successes(rows: Sequence[Row]) -> list[tuple[str, bool]]:
    """Which edits succeed: P(o*) > P(o) at the edit prompt."""
    return [(row.test.edit_id, row.new_probability > row.true_probability) for row in rows if row.test.metric == "acc"]


def _of_successful_edits(metric: SakeMetric, found: Outcomes, successes: list[tuple[str, bool]]) -> Outcomes:
    succeeds: dict[str, bool] = {}
    for edit, success in successes:
        if edit in succeeds:
            raise MegaValueError(f"`rows` must hold one acc test an edit, but got two of edit {edit!r}.")
        succeeds[edit] = success
    for edit in found.edits:
        if edit not in succeeds:
            raise MegaValueError(f"`rows` must hold an acc test for each {metric} test, but got none of edit {edit!r}.")
    return kept(found, [succeeds[edit] for edit in found.edits])


def _measures() -> dict[str, Measure]:
    """The nine measures, and the mean of those that count a test.

    SA's condition is that the bare model gives the old object under the alias. SAKE's notebook asks the mapped,
    ungated state for the new one instead, so that its SA mostly measures the gate.
    """
    means = {
        metric: Mean(
            partial(_outcomes, metric),
            deferred=Deferred(_successes, partial(_of_successful_edits, metric)) if metric in CONDITIONAL else None,
        )
        for metric in get_args(SakeMetric)
    }
    return {**means, "average": Combined(means.values(), "arithmetic")}


PROTOCOL: Protocol[Test, Answer, Row] = Protocol(
    name="sake",
    tests=sake_tests,
    ask_bare=ask_bare,
    ask=ask_edited,
    oracle=True,
    routing=routing,
    answer=Answer,
    row=sake_row,
    measures=_measures,
)
