"""Asking the tests of SAKE's protocol: the first token after each prompt, and the chances of both objects."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from mega_pl.asking import BARE, Edited, answer_ids, in_batches, likeliest, token_counts
from mega_pl.asking.batches import encoded_ids
from mega_pl.asking.next_token import decoded
from mega_pl.backbone import Backbone, prompt_lengths
from mega_pl.data.sake import Test
from mega_pl.editors.protocol import Routed
from mega_pl.edits import ContentRouter, EditBank
from mega_pl.errors import MegaValueError
from mega_pl.metrics import Row, first_token_hit

Mode = Literal["own", "oracle", "subject", "relation", "always"]
"""Who routes: the bank's own router; an oracle that knows what each test is about; the router by the subject's name
alone, or by the relation alone; the router without the choice to stay silent."""

CONTRASTS = frozenset({"acc", "gen", "spec", "di", "dii"})
"""Measures of the new object against the true one; where both begin alike they are judged after what they share."""

UNTOUCHED = frozenset({"spec", "rs"})
"""Measures whose prompts no edit should answer."""


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


def ask_bare(backbone: Backbone, tests: Sequence[Test], *, literal_ids: bool = False) -> list[Answer]:
    """Ask tests, and the conditions that they have, of a bare model. Arguments as for `ask_edited`."""
    return _with_conditions(backbone, tests, ask_edited(backbone, BARE, tests, literal_ids=literal_ids))


def ask_edited(
    backbone: Backbone,
    edited: Edited,
    tests: Sequence[Test],
    *,
    mode: Mode | None = None,
    literal_ids: bool = False,
) -> list[Answer]:
    """Ask tests of a model with edits in force.

    Args:
        backbone: The model, within its edits.
        edited: The edits in force; they say how a prompt is asked.
        tests: What to ask.
        mode: Who routes; None leaves the routing as it is. It says nothing where edits are not routed.
        literal_ids: Take the first ids of the objects without the space before them at the edit prompt, as SAKE's
            notebooks do when they ask whether an edit took; their ids are not those that the model writes there.

    Returns:
        An answer for each test.

    Raises:
        ValueError: If an object merges with its prompt, a prompt is too long, or the mode is one of a bank alone.
    """
    if mode in ("subject", "relation"):
        raise MegaValueError(
            f"`mode` of an editor must be own, oracle or always, but got {mode!r}; ask a bank with `ask`."
        )

    def read(asked: Sequence[Test]) -> list[Answer]:
        if mode is not None:
            edited.route(_oracle(asked) if mode == "oracle" else None, forced=mode == "always")
        return _ask(backbone, edited, asked, literal_ids)

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
    """Ask one batch of tests, of the bare model once and of the model with a bank in each mode.

    All are asked in the same batch, so that a row that no edit answers has the bare model's probabilities to the bit.

    Args:
        backbone: The bare model.
        bank: The edits.
        tests: What to ask.
        modes: Who routes.

    Returns:
        A row for each test, by mode.
    """
    bare = _with_conditions(backbone, tests, _ask(backbone, BARE, tests))
    rows: dict[Mode, list[Row]] = {}
    for mode in modes:
        oracle = _oracle(tests) if mode == "oracle" else None
        with _routed_by(bank, mode).apply(backbone, edits=oracle, forced=mode == "always") as use:
            answers = _ask(backbone, Routed(use), tests)
        rows[mode] = [sake_row(*columns) for columns in zip(tests, bare, answers, strict=True)]
    return rows


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
        kept = [row for row in rows if row.test.metric == metric and row.knows]
        right = ["" if metric in UNTOUCHED else row.test.edit_id for row in kept]
        silent = sum(row.fired == "" for row in kept)
        hits = sum(row.fired == edit for row, edit in zip(kept, right, strict=True))
        wrong = sum(row.fired not in ("", edit) for row, edit in zip(kept, right, strict=True))
        n = max(1, len(kept))
        table[metric] = {"right": hits / n, "wrong_edit": wrong / n, "silent": silent / n, "n": len(kept)}
    return table


def _oracle(tests: Sequence[Test]) -> list[str | None]:
    """The edit that each test is about."""
    return [None if test.metric in UNTOUCHED else test.edit_id for test in tests]


def _ask(backbone: Backbone, edited: Edited, tests: Sequence[Test], literal_ids: bool = False) -> list[Answer]:
    """Ask tests in one batch."""
    prompts = [edited.prompt(test.prompt) for test in tests]
    new, lengths = answer_ids(backbone, prompts, [test.new for test in tests])
    true, _ = answer_ids(backbone, prompts, [test.true for test in tests])
    shared = [_shared(test, *ids) for test, *ids in zip(tests, new, true, strict=True)]
    starts = [[*start, *ids[:n]] for start, ids, n in zip(encoded_ids(backbone, prompts), new, shared, strict=True)]
    with prompt_lengths(lengths):
        logits = backbone.last_logits(backbone.pad(starts))
    fired = edited.fired or [None] * len(tests)
    said = _said(backbone, tests, prompts, [ids[:n] for ids, n in zip(new, shared, strict=True)], logits)
    chances = (
        _chances(logits, _judged_ids(backbone, tests, objects, ids, shared, literal_ids))
        for objects, ids in (([test.new for test in tests], new), ([test.true for test in tests], true))
    )
    return [
        Answer(token, new_chance, true_chance, fired=edit or "")
        for token, new_chance, true_chance, edit in zip(said, *chances, fired, strict=True)
    ]


def _shared(test: Test, new: Sequence[int], true: Sequence[int]) -> int:
    """How many ids both objects begin with, after which a test of their contrast is judged."""
    if test.metric not in CONTRASTS:
        return 0
    shared = 0
    while shared < min(len(new), len(true)) - 1 and new[shared] == true[shared]:
        shared += 1
    return shared


def _said(
    backbone: Backbone, tests: Sequence[Test], prompts: Sequence[str], given: Sequence[Sequence[int]], logits: Tensor
) -> list[str]:
    """The argmax tokens, with what is given before them; one that is no text by itself as the answer that it begins."""
    said = []
    for test, prompt, start, token in zip(tests, prompts, given, logits.argmax(-1).tolist(), strict=True):
        text = str(backbone.tokenizer.decode([*start, token]))
        if "\ufffd" in text:
            begun = (a for a in test.answers if backbone.answer_ids(prompt, a)[: len(start) + 1] == [*start, token])
            text = next(begun, text)
        said.append(text)
    return said


def _judged_ids(
    backbone: Backbone,
    tests: Sequence[Test],
    objects: list[str],
    ids: Sequence[Sequence[int]],
    shared: Sequence[int],
    literal: bool,
) -> list[int]:
    """The id by which each object is judged or, at edit prompts and literally, the first one of the object alone."""
    judged = [of_object[n] for of_object, n in zip(ids, shared, strict=True)]
    if literal:
        alone = backbone.tokenizer(objects, add_special_tokens=False)["input_ids"]
        judged = [own[0] if test.metric == "acc" else i for test, own, i in zip(tests, alone, judged, strict=True)]
    return judged


def _chances(logits: Tensor, ids: list[int]) -> list[float]:
    """Probability of one id a row, after logits (B, V)."""
    chances = logits.softmax(-1).gather(1, torch.tensor(ids, device=logits.device)[:, None])[:, 0]
    return [float(chance) for chance in chances.clamp(max=1.0)]


def _with_conditions(backbone: Backbone, tests: Sequence[Test], answers: Sequence[Answer]) -> list[Answer]:
    """The bare model's answers with what it knows of their conditions."""
    prompts = list(dict.fromkeys(test.condition_prompt for test in tests if test.condition_prompt))
    said = dict(zip(prompts, decoded(backbone, likeliest(backbone, prompts)), strict=True))
    return [
        replace(answer, knows=first_token_hit(said[test.condition_prompt], test.condition_answers))
        if test.condition_prompt
        else answer
        for answer, test in zip(answers, tests, strict=True)
    ]
