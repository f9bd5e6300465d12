"""What an edit does inside the model: layers, heads, neurons, and where it steers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from matplotlib.figure import Figure

from mega_pl.attribution import SIGN_CLASSES, class_frequencies, head_importance, top_neurons
from mega_pl.attribution.figures import draw_edit, draw_heads, draw_steering
from mega_pl.attribution.steering import edit_importance, steering_norms
from mega_pl.backbone import Backbone
from mega_pl.edits import EditBank, EditRequest
from mega_pl.errors import MegaValueError
from mega_pl.protocols.general import general_prompts

NEURONS = 10
"""Neurons that are listed."""

SIDES = ("before", "after")


@dataclass(frozen=True)
class Sight:
    """What there is to be seen so far; a part that the model's architecture does not allow says so in `notes`.

    Args:
        layers: Importances of layers for both objects, before and after the edit.
        heads: Importances of heads for the new object, before and after.
        steering: How far the edit moves each site.
        neurons: The most important neurons for the new object: when, layer, neuron, importance in nats, activation,
            sign class.
        classes: Of the same neurons, where they are gated: layer, neuron, and for each sign class its share of tokens
            and the token at which it is most active.
        notes: What cannot be shown, and why.
    """

    layers: Figure | None = None
    heads: tuple[Figure, ...] = ()
    steering: Figure | None = None
    neurons: tuple[tuple[str, int, int, float, float, str], ...] = ()
    classes: tuple[tuple[str, ...], ...] = ()
    notes: tuple[str, ...] = ()


def see(backbone: Backbone, bank: EditBank, edit_id: str, prompt: str, show: Callable[[Sight], None]) -> Sight:
    """Look at an edit at a prompt, part by part.

    Args:
        backbone: The bare model.
        bank: The edits.
        edit_id: Which of them is put into force at the prompt, whatever the router says.
        prompt: Where to look; blank for the edit's own.
        show: Is given what is to be seen after each part.

    Returns:
        All of it.

    Raises:
        KeyError: If the bank has no such edit.
        ValueError: If the prompt is too long.
    """
    request = bank[edit_id]
    text = prompt.strip() or request.filled
    seen = Sight()
    for part in (_layers, _heads, _steering, _neurons, _classes):
        try:
            seen = part(backbone, bank, request, text, seen)
        except MegaValueError as error:
            if part is _layers:
                raise
            seen = replace(seen, notes=(*seen.notes, f"{part.__name__.strip('_')}: {error}"))
        show(seen)
    return seen


def _target(backbone: Backbone, request: EditRequest) -> list[int]:
    """The first token of the new object."""
    return backbone.answer_ids(request.filled, request.target_new)[:1]


def _layers(backbone: Backbone, bank: EditBank, request: EditRequest, prompt: str, seen: Sight) -> Sight:
    before, after = edit_importance(backbone, bank, request.edit_id, prompt)
    steered = [site.layer for site in bank.maps]
    note = _unlike_the_router(backbone, bank, request.edit_id, prompt)
    figure = draw_edit(before, after, names=(request.target_new, request.target_true), picked=steered)
    return replace(seen, layers=figure, notes=(*seen.notes, *note))


def _unlike_the_router(backbone: Backbone, bank: EditBank, edit_id: str, prompt: str) -> list[str]:
    """What to say where the edit would not answer the prompt by itself."""
    with bank.apply(backbone) as use:
        backbone.generate(prompt, max_new_tokens=1)
        fired = use.fired[0]
    if fired == edit_id:
        return []
    who = f"{fired} does" if fired else "none does"
    return [f"In use {edit_id} does not answer this prompt ({who}); it is shown as if it did."]


def _heads(backbone: Backbone, bank: EditBank, request: EditRequest, prompt: str, seen: Sight) -> Sight:
    scores = {}
    for when in SIDES:
        with bank.apply(backbone, edits=[request.edit_id if when == "after" else None]):
            scores[when] = head_importance(backbone, [prompt], [_target(backbone, request)]).heads[0, 0]
    most = max(float(of.abs().max()) for of in scores.values())
    return replace(
        seen,
        heads=tuple(draw_heads(of, f"Heads for “{request.target_new}”, {w}", most) for w, of in scores.items()),
    )


def _steering(backbone: Backbone, bank: EditBank, request: EditRequest, prompt: str, seen: Sight) -> Sight:
    one = bank.remove(*(i for i in bank.ids if i != request.edit_id)) if len(bank) > 1 else bank
    return replace(seen, steering=draw_steering(steering_norms(backbone, one)))


def _neurons(backbone: Backbone, bank: EditBank, request: EditRequest, prompt: str, seen: Sight) -> Sight:
    rows = []
    for when in SIDES:
        with bank.apply(backbone, edits=[request.edit_id if when == "after" else None]):
            found = top_neurons(backbone, [prompt], [_target(backbone, request)], NEURONS)
        signs = [""] * NEURONS if found.signs is None else [SIGN_CLASSES[i] for i in found.signs[0, 0].tolist()]
        columns = (found.layer, found.neuron, found.importance, found.activation)
        rows += [(when, *row) for row in zip(*(c[0, 0].tolist() for c in columns), signs, strict=False)]
    return replace(seen, neurons=tuple(rows))


def _classes(backbone: Backbone, bank: EditBank, request: EditRequest, prompt: str, seen: Sight) -> Sight:
    gated = list(dict.fromkeys((layer, neuron) for _, layer, neuron, *_, sign in seen.neurons if sign))
    if not gated:
        return replace(seen, notes=(*seen.notes, "sign classes: the neurons of this model have no gate."))
    found = class_frequencies(backbone, general_prompts(), gated, examples=1)
    rows = []
    for (layer, neuron), shares, examples in zip(gated, found.shares.tolist(), found.examples, strict=True):
        cells = [
            f"{share:.0%}" + "".join(f" …{e.context}" for e in of) for share, of in zip(shares, examples, strict=True)
        ]
        rows.append((str(layer), str(neuron), *cells))
    return replace(seen, classes=tuple(rows))
