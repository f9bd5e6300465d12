"""Asking the bare and the edited model the tests of a protocol."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from mega_pl.backbone import Backbone
from mega_pl.data.sake import Test
from mega_pl.edits import EditBank
from mega_pl.metrics import Row, first_token_hit

Mode = Literal["gate", "oracle", "forced"]
"""Who routes: the gate; an oracle that knows what each test is about; the gate without the choice to stay silent."""

UNTOUCHED = frozenset({"spec", "rs"})
"""Measures whose prompts no edit should answer."""


def ask(backbone: Backbone, bank: EditBank, tests: Sequence[Test], modes: Sequence[Mode]) -> dict[Mode, list[Row]]:
    """Ask some tests, of the bare model once and of the edited model in each mode.

    Args:
        backbone: The bare model.
        bank: The edits.
        tests: What to ask.
        modes: Who routes.

    Returns:
        A row for each test, by mode.
    """
    prompts = [test.prompt for test in tests]
    encoded = backbone.encode(prompts)
    bare = backbone.last_logits(encoded)
    knows = _knows(backbone, tests)
    new = _first_ids(backbone, [(test.prompt, test.new) for test in tests])
    true = _first_ids(backbone, [(test.prompt, test.true) for test in tests])
    rows: dict[Mode, list[Row]] = {}
    for mode in modes:
        oracle = [None if test.metric in UNTOUCHED else test.edit_id for test in tests] if mode == "oracle" else None
        with bank.apply(backbone, edits=oracle, forced=mode == "forced") as use:
            steered = backbone.last_logits(encoded)
        columns = (
            tests,
            *(_tokens(backbone, logits) for logits in (bare, steered)),
            *(_chances(logits, ids) for logits in (bare, steered) for ids in (new, true)),
            knows,
            use.fired,
        )
        rows[mode] = [
            Row(
                test=test,
                bare_prediction=bare_token,
                prediction=token,
                bare_new=bare_new,
                bare_true=bare_true,
                new_probability=new_chance,
                true_probability=true_chance,
                knows=known,
                fired=fired or "",
            )
            for test, bare_token, token, bare_new, bare_true, new_chance, true_chance, known, fired in zip(
                *columns, strict=True
            )
        ]
    return rows


def routing(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """How the gate routes each kind of prompt: share that goes to the right edit, to a wrong one, and to none.

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


def _knows(backbone: Backbone, tests: Sequence[Test]) -> list[bool]:
    asked = [i for i, test in enumerate(tests) if test.condition_prompt]
    knows = [True] * len(tests)
    if asked:
        encoded = backbone.encode([tests[i].condition_prompt for i in asked])
        for i, token in zip(asked, _tokens(backbone, backbone.last_logits(encoded)), strict=True):
            knows[i] = first_token_hit(token, tests[i].condition_answers)
    return knows


def _tokens(backbone: Backbone, logits: Tensor) -> list[str]:
    return [str(backbone.tokenizer.decode([token])) for token in logits.argmax(-1).tolist()]


def _first_ids(backbone: Backbone, pairs: Sequence[tuple[str, str]]) -> Tensor:
    return torch.tensor([backbone.answer_ids(prompt, answer)[0] for prompt, answer in pairs])


def _chances(logits: Tensor, ids: Tensor) -> list[float]:
    chances = logits.softmax(-1).gather(1, ids.to(logits.device)[:, None])[:, 0]
    return [float(chance) for chance in chances.clamp(max=1.0)]
