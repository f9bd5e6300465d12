"""The four ways in which a gated neuron acts: the signs of its gate and of its input.

A neuron of a gated MLP (SwiGLU, GeGLU) is m = act(g) · u, with gate g and input u, and act keeps the sign of g. Hence a
neuron writes its row for two reasons, both signs alike, and the row's opposite for two others; which of the four it was
tells apart what one activation hides.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from torch.nn import functional

from mega_pl.backbone import Backbone, Encoded, PaddingSide
from mega_pl.backbone.anatomy import neuron_keys
from mega_pl.backbone.observation import Gates, observe_gates
from mega_pl.errors import MegaValueError

SIGN_CLASSES = ("gate+ input+", "gate+ input-", "gate- input+", "gate- input-")
"""Names of the classes; zero counts as positive."""

Neuron = tuple[int, int]
"""Layer and neuron, both 0-based."""

_NO_TOKEN = -1


@dataclass(frozen=True, eq=False)
class Gating:
    """What N gated neurons do at the last token of B prompts.

    Args:
        gate: (B, N) g, before the activation function.
        input: (B, N) u.
        activation: (B, N) act(g) · u.
        classes: (B, N) long, indices of `SIGN_CLASSES`.
    """

    gate: Tensor
    input: Tensor
    activation: Tensor
    classes: Tensor


@dataclass(frozen=True)
class Example:
    """A token at which a neuron is active.

    Args:
        context: the text up to the token and the token itself.
        token: the token's text.
        activation: act(g) · u.
    """

    context: str
    token: str
    activation: float


@dataclass(frozen=True, eq=False)
class ClassFrequencies:
    """How often each of N neurons is in each class over a corpus.

    Args:
        counts: (N, 4) long, tokens.
        examples: for each neuron and class the tokens with the largest absolute activation, largest first.
    """

    counts: Tensor
    examples: tuple[tuple[tuple[Example, ...], ...], ...]

    @property
    def shares(self) -> Tensor:
        """The counts as fractions of all tokens, (N, 4)."""
        return self.counts / self.counts.sum(1, keepdim=True)


@dataclass(frozen=True, eq=False)
class ClassChange:
    """How the classes of N neurons differ between two passes over the same B prompts.

    Args:
        changed: (B, N) bool.
        transitions: (N, 4, 4) long, prompts by class before and class after.
        activation: (B, N) after minus before.
    """

    changed: Tensor
    transitions: Tensor
    activation: Tensor


def sign_classes(gate: Tensor, input: Tensor) -> Tensor:
    """Give the class of each pair of a gate and an input of the same shape, as an index of `SIGN_CLASSES`.

    >>> sign_classes(torch.tensor([1.0, 1.0, -1.0, -1.0]), torch.tensor([1.0, -1.0, 1.0, -1.0]))
    tensor([0, 1, 2, 3])
    """
    return 2 * (gate < 0).long() + (input < 0).long()


def gating(
    backbone: Backbone, prompts: Sequence[str], neurons: Sequence[Neuron], *, padding_side: PaddingSide = "left"
) -> Gating:
    """Read gated neurons at the last token of some prompts, with the edits that are in force.

    Args:
        backbone: a model whose neurons have gates.
        prompts: B texts.
        neurons: N neurons.
        padding_side: left or right; the result does not depend on it.

    Raises:
        ValueError: if the model lacks a neuron, or its neurons have no gate.
    """
    encoded = backbone.encode(prompts, padding_side)
    seen = observe_gates(backbone, encoded, _checked(backbone, neurons))
    last = (encoded.attention_mask.sum(-1) - 1).to(seen.gate.device)
    rows = torch.arange(len(last), device=last.device)
    gate, multiplied, activation = (values[rows, last] for values in (seen.gate, seen.input, seen.activation))
    return Gating(gate, multiplied, activation, sign_classes(gate, multiplied))


def class_frequencies(
    backbone: Backbone,
    texts: Iterable[str],
    neurons: Sequence[Neuron],
    *,
    batch_size: int = 8,
    examples: int = 3,
    context: int = 8,
) -> ClassFrequencies:
    """Count the classes of neurons at every token of a corpus, which is read once and not kept.

    Args:
        backbone: a model whose neurons have gates.
        texts: the corpus, in pieces that the model can read.
        neurons: N neurons.
        batch_size: texts to read at a time.
        examples: tokens to keep for each neuron and class.
        context: tokens before it that an example shows.

    Raises:
        ValueError: if there is no text, an option is out of range, the model lacks a neuron, or they have no gate.
    """
    if not batch_size > 0 or examples < 0 or context < 0:
        raise MegaValueError(
            "`batch_size` must be above 0, and `examples` and `context` 0 or more, "
            f"but got {batch_size}, {examples} and {context}."
        )
    index, remaining = _checked(backbone, neurons), iter(texts)
    tally = _Tally(len(index), examples, context)
    while batch := list(islice(remaining, batch_size)):
        encoded = backbone.encode(batch, "right")
        tally.update(observe_gates(backbone, encoded, index), encoded)
    if not tally.counts.any():
        raise MegaValueError("`texts` must hold at least one text, but got none.")
    return ClassFrequencies(tally.counts, tally.examples(backbone))


def compare_classes(before: Gating, after: Gating) -> ClassChange:
    """Compare what neurons do in two passes over the same prompts, for example without and with an edit.

    Args:
        before: of one pass.
        after: of the other, with the same prompts and neurons.

    Raises:
        ValueError: if they differ in shape.
    """
    if before.classes.shape != after.classes.shape:
        raise MegaValueError(
            "`before` and `after` must hold the same prompts and neurons, but got "
            f"{tuple(before.classes.shape)} and {tuple(after.classes.shape)}."
        )
    size = len(SIGN_CLASSES)
    pairs = functional.one_hot(before.classes * size + after.classes, size * size).sum(0)
    return ClassChange(
        changed=before.classes != after.classes,
        transitions=pairs.view(-1, size, size),
        activation=after.activation - before.activation,
    )


class _Tally:
    """Counts of classes, and the tokens with the largest activations, of what has been seen so far."""

    def __init__(self, neurons: int, examples: int, context: int) -> None:
        size = len(SIGN_CLASSES)
        self.context = context
        self.counts = torch.zeros(neurons, size, dtype=torch.long)
        self.activation = torch.full((examples, neurons, size), torch.nan)
        self.windows = torch.full((examples, neurons, size, context + 1), _NO_TOKEN)

    def update(self, seen: Gates, encoded: Encoded) -> None:
        """Add a right-padded batch."""
        real = encoded.attention_mask.bool().cpu()
        codes = functional.one_hot(sign_classes(seen.gate, seen.input).cpu()[real], len(SIGN_CLASSES))
        self.counts += codes.sum(0)
        activation = seen.activation.cpu()[real].float()[..., None].where(codes.bool(), torch.nan)
        padded = functional.pad(encoded.input_ids.cpu(), (self.context, 0), value=_NO_TOKEN)
        windows = padded.unfold(1, self.context + 1, 1)[real]
        found = _largest(activation, min(len(self.activation), len(activation)))
        activation = torch.cat([self.activation, activation.gather(0, found)])
        windows = torch.cat([self.windows, windows[found]])
        kept = _largest(activation, len(self.activation))
        self.activation = activation.gather(0, kept)
        self.windows = windows.take_along_dim(kept[..., None], 0)

    def examples(self, backbone: Backbone) -> tuple[tuple[tuple[Example, ...], ...], ...]:
        """Give the texts, for each neuron and class."""
        return tuple(
            tuple(
                tuple(
                    _example(backbone, window, activation)
                    for window, activation in zip(windows, activations, strict=True)
                    if activation == activation  # not a number where there are fewer tokens
                )
                for windows, activations in zip(of_neuron, values, strict=True)
            )
            for of_neuron, values in zip(
                self.windows.permute(1, 2, 0, 3).tolist(), self.activation.permute(1, 2, 0).tolist(), strict=True
            )
        )


def _largest(activation: Tensor, count: int) -> Tensor:
    """Indices along dimension 0 of the largest absolute values; what is not a number comes last."""
    return activation.abs().nan_to_num(-1.0).topk(count, 0).indices


def _example(backbone: Backbone, window: list[int], activation: float) -> Example:
    ids = [token for token in window if token != _NO_TOKEN]
    decode = backbone.tokenizer.decode
    return Example(str(decode(ids)), str(decode(ids[-1:])), activation)


def _checked(backbone: Backbone, neurons: Sequence[Neuron]) -> Tensor:
    """Give the neurons as (N, 2) long."""
    size = len(neuron_keys(backbone.model, 0))
    ok = [0 <= layer < backbone.n_layers and 0 <= neuron < size for layer, neuron in neurons]
    if not ok or not all(ok):
        raise MegaValueError(
            f"`neurons` must name layers in [0, {backbone.n_layers - 1}] and neurons in [0, {size - 1}], "
            f"but got {list(neurons)}."
        )
    return torch.tensor(list(neurons))
