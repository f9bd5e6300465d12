"""Asking the bare model itself: what it answers, and whom it knows."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

import torch

from mega_pl.backbone import Backbone

Item = TypeVar("Item")
Asked = ParamSpec("Asked")
Told = TypeVar("Told")


def once_a_backbone(
    ask: Callable[Concatenate[Backbone, Asked], Told],
) -> Callable[Concatenate[Backbone, Asked], Told]:
    """Remember what a bare model told, as long as it lives."""
    told: WeakKeyDictionary[Backbone, dict[Any, Told]] = WeakKeyDictionary()

    @wraps(ask)
    def remembered(backbone: Backbone, /, *args: Asked.args, **kwargs: Asked.kwargs) -> Told:
        known, key = told.setdefault(backbone, {}), (args, tuple(sorted(kwargs.items())))
        if key not in known:
            known[key] = ask(backbone, *args, **kwargs)
        return known[key]

    return remembered


def likeliest(backbone: Backbone, prompts: Sequence[str], *, batch: int = 128) -> list[int]:
    """The likeliest token after each prompt.

    Args:
        backbone: The bare model.
        prompts: Questions that end before the answer.
        batch: Prompts a forward pass.
    """
    encoded = (backbone.encode(some) for some in _chunks(prompts, batch))
    return [token for some in encoded for token in backbone.last_logits(some).argmax(-1).tolist()]


@torch.no_grad()
def answers(
    backbone: Backbone, prompts: Sequence[str], *, least: float = 0.1, tokens: int = 12, batch: int = 128
) -> list[tuple[str, ...]]:
    """What the model answers: each first token of at least ``least`` probability, continued greedily.

    Args:
        backbone: The bare model.
        prompts: Questions that end before the answer.
        least: Least probability of an answer's first token.
        tokens: The most tokens of an answer; it ends before the first full stop or line break.
        batch: Prompts a forward pass.

    Returns:
        For each prompt its answers, the likeliest first.
    """
    starts: list[tuple[int, int]] = []
    for some in _chunks(range(len(prompts)), batch):
        chances, ids = backbone.last_logits(backbone.encode([prompts[i] for i in some])).softmax(-1).topk(5)
        for i, row, of_row in zip(some, chances.tolist(), ids.tolist(), strict=True):
            starts += [(i, token) for chance, token in zip(row, of_row, strict=True) if chance >= least]
    found: list[list[str]] = [[] for _ in prompts]
    for some_starts in _chunks(starts, batch):
        texts = _continued(backbone, [prompts[i] for i, _ in some_starts], [t for _, t in some_starts], tokens - 1)
        for (i, _), text in zip(some_starts, texts, strict=True):
            answer = _sentence(text, backbone)
            if answer and answer not in found[i]:
                found[i].append(answer)
    return [tuple(names) for names in found]


@once_a_backbone
@torch.no_grad()
def names(
    backbone: Backbone, template: str, *, draws: int, seed: int, tokens: int = 16, batch: int = 256
) -> tuple[str, ...]:
    """Names that the model itself puts into a template, drawn from its distribution at temperature 1.

    The words before the slot are continued freely; what then stands before the words after the slot is a name. Only
    what begins like a name is kept: descriptions such as "the spouse of" begin with a small letter.

    Args:
        backbone: The bare model.
        template: A template with one ``{}``, with words on both sides; without them nothing can be drawn.
        draws: Texts to draw.
        seed: Seed of the draws.
        tokens: The most tokens of a drawn text.
        batch: Texts drawn together.

    Returns:
        The different names, the most often drawn first.
    """
    head, tail = (part.strip() for part in template.split("{}"))
    if not head or not tail:
        return ()
    encoded, counts = backbone.encode([head]), Counter[str]()
    cuda = [backbone.device] if backbone.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        for some in _chunks(range(draws), batch):
            ids = backbone.model.generate(
                **{name: tensor.expand(len(some), -1) for name, tensor in encoded.inputs.items()},
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=tokens,
                pad_token_id=backbone.tokenizer.pad_token_id,
            )
            for text in backbone.tokenizer.batch_decode(ids, skip_special_tokens=True):
                name, ended, _ = text.strip().removeprefix(head).partition(f" {tail}")
                if ended and name.strip() and "\n" not in name:
                    counts[name.strip()] += 1
    return tuple(name for name, _ in counts.most_common() if not name[0].islower())


@once_a_backbone
def acquaintances(backbone: Backbone, template: str, *, draws: int, seed: int) -> dict[str, tuple[str, ...]]:
    """Whom the model thinks of when it is asked a question, and what it answers about each; asked once a backbone.

    Args:
        backbone: The bare model.
        template: A template with one ``{}`` that ends before the answer.
        draws: Texts to draw.
        seed: Seed of the draws.

    Returns:
        By name, most often drawn first, what `answers` gives.
    """
    found = names(backbone, template, draws=draws, seed=seed)
    told = answers(backbone, [template.replace("{}", name) for name in found])
    return dict(zip(found, told, strict=True))


def _continued(backbone: Backbone, prompts: Sequence[str], starts: Sequence[int], tokens: int) -> list[str]:
    """The greedy continuations of prompts that begin with given tokens; they are decoded with their prompts."""
    encoded = backbone.encode(prompts)
    begun = torch.tensor(starts, device=backbone.device)[:, None]
    ids = backbone.model.generate(
        input_ids=torch.cat([encoded.input_ids, begun], 1),
        attention_mask=torch.cat([encoded.attention_mask, torch.ones_like(begun)], 1),
        do_sample=False,
        max_new_tokens=tokens,
        pad_token_id=backbone.tokenizer.pad_token_id,
    )
    whole = backbone.tokenizer.batch_decode(ids, skip_special_tokens=True)
    asked = backbone.tokenizer.batch_decode(encoded.input_ids, skip_special_tokens=True)
    return [text[len(prompt) :] for prompt, text in zip(asked, whole, strict=True)]


def _sentence(text: str, backbone: Backbone) -> str:
    for end in (".", "\n", backbone.tokenizer.eos_token):
        text = text.split(end)[0]
    return text.strip()


def _chunks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    return (items[i : i + size] for i in range(0, len(items), size))
