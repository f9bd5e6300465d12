"""How linear relations are in a bare model: does an affine map of the subject's state give the object?

The linear relational embedding (LRE) of Hernandez et al., arXiv:2308.09124: o ≈ W s + b, with s the state of the
subject's last token at a middle layer and o the state of the prompt's last token after the last block. A prompt is
faithful if the map that all *other* prompts of its relation give ends in the token that the model itself says.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from mega_pl.asking import batches, token_counts
from mega_pl.backbone import Backbone, Encoded, Site, Steering, record, steer
from mega_pl.editors.contexts import Wordings, subject_positions
from mega_pl.edits import EditCase, EditRequest
from mega_pl.errors import MegaValueError
from mega_pl.functional.linearity import left_out_jacobian, left_out_mean, left_out_ridge
from mega_pl.protocols.cases import relation_of

Estimator = Literal["ridge", "jacobian"]
"""How W and b are found: a fit to the examples, cheap, or the mean of the model's exact derivatives, as in the paper.

A prompt's derivative costs a forward and a backward pass of D copies of it; its N D² numbers are held for a relation.
"""

_READ = 512

LEAST = 5
"""The fewest different prompts of a relation that are judged."""


@dataclass(frozen=True, kw_only=True)
class Faithfulness:
    """What linear maps make of one prompt.

    Args:
        linear: Whether the map of the other prompts ends in the bare model's token.
        constant: Whether their mean object state does, without a look at the subject.
    """

    linear: bool
    constant: bool


def relation_linearity(
    backbone: Backbone,
    cases: Sequence[EditCase],
    *,
    layer: int | None = None,
    estimator: Estimator = "ridge",
    ridge: float = 0.1,
    scale: float = 1.0,
    least: int = LEAST,
) -> dict[str, Faithfulness]:
    """Judge how linear the relations of cases are in the bare model, which no edit changes.

    Args:
        backbone: The bare model.
        cases: Their edit prompts are the examples; one that comes twice is one.
        layer: Block after which the subject's state is read; by default the middle one.
        estimator: How the map is found.
        ridge: Multiple of the subject states' mean square distance, for "ridge".
        scale: β of the map, for "jacobian".
        least: The fewest different prompts of a relation that are judged.

    Returns:
        By edit id; cases of relations with fewer prompts are left out.

    Raises:
        ValueError: If there is no such layer before the last, no such estimator, or `least` is under 2.
    """
    middle = backbone.n_layers // 2 - 1 if layer is None else layer
    if not 0 <= middle < backbone.n_layers - 1:
        raise MegaValueError(
            f"`layer` must lie in [0, {backbone.n_layers - 2}], before the last block, but got {middle}."
        )
    if estimator not in get_args(Estimator):
        raise MegaValueError(f"`estimator` must be one of {', '.join(get_args(Estimator))}, but got {estimator!r}.")
    if least < 2:
        raise MegaValueError(f"`least` must be 2 or more, so that one can be left out, but got {least}.")
    found: dict[str, Faithfulness] = {}
    for requests in _relations(cases):
        unique = list({request.filled: request for request in requests}.values())
        if len(unique) < least:
            continue
        states = _states(backbone, unique, middle)
        if estimator == "ridge":
            guess = left_out_ridge(states.subject, states.object, ridge)
        else:
            slopes = torch.stack([jacobian(backbone, request, middle) for request in unique])
            guess = left_out_jacobian(states.subject, states.object, slopes, scale=scale)
        linear = _spoken(backbone, guess) == states.predicted
        constant = _spoken(backbone, left_out_mean(states.object)) == states.predicted
        judged = {
            request.filled: Faithfulness(linear=a, constant=b)
            for request, a, b in zip(unique, linear.tolist(), constant.tolist(), strict=True)
        }
        found |= {request.edit_id: judged[request.filled] for request in requests}
    return found


def jacobian(backbone: Backbone, request: EditRequest, layer: int, *, rows: int = 256) -> Tensor:
    """Derivative of the object's state with respect to the subject's, exact, (D, D) float32 on the CPU.

    Each output has a copy of the prompt to itself, so that one backward pass gives many rows and no operation of the
    model needs a rule for batched derivatives.

    Args:
        backbone: The model.
        request: Its filled prompt is asked.
        layer: Block after which the subject's state is read.
        rows: The most copies in a pass.
    """
    encoded, position = _encode(backbone, [request])
    parts = [
        _rows(backbone, _copies(encoded, len(outputs)), position.expand(len(outputs)), layer, outputs)
        for outputs in torch.split(torch.arange(backbone.width), rows)
    ]
    return torch.cat(parts)


@torch.enable_grad()
def _rows(backbone: Backbone, encoded: Encoded, positions: Tensor, layer: int, outputs: Tensor) -> Tensor:
    """The rows of a Jacobian that belong to some outputs, one a copy of the prompt."""
    leaves: list[Tensor] = []
    ends: list[Tensor] = []

    def lift(values: Tensor) -> Tensor:
        leaves.append(values.detach().requires_grad_())
        return leaves[0]

    def keep(values: Tensor) -> Tensor:
        ends.append(values)
        return values

    last = Site(backbone.n_layers - 1, "resid_post")
    with (
        steer(backbone.model, {Site(layer, "resid_post"): lift}, positions),
        steer(backbone.model, {last: keep}, encoded.last),
    ):
        backbone.model(**encoded.inputs, use_cache=False, logits_to_keep=1)
    own = ends[0].gather(1, outputs.to(ends[0].device)[:, None])
    (slopes,) = torch.autograd.grad(own.sum(), leaves)
    return slopes.float().cpu()


def _copies(encoded: Encoded, n: int) -> Encoded:
    """One encoded prompt, n times."""
    return Encoded(
        encoded.input_ids.expand(n, -1),
        encoded.attention_mask.expand(n, -1),
        encoded.position_ids.expand(n, -1),
        encoded.last.expand(n),
    )


@dataclass(frozen=True, eq=False)
class _States:
    """Of N prompts the states of subject and object, (N, D) float32 on the CPU, and the ids that follow, (N,)."""

    subject: Tensor
    object: Tensor
    predicted: Tensor


def _states(backbone: Backbone, requests: Sequence[EditRequest], layer: int) -> _States:
    subjects, objects = torch.zeros(2, len(requests), backbone.width)
    predicted = torch.zeros(len(requests), dtype=torch.long)
    middle, last = Site(layer, "resid_post"), Site(backbone.n_layers - 1, "resid_post")
    for batch in batches(token_counts(backbone, [request.filled for request in requests])):
        encoded, positions = _encode(backbone, [requests[i] for i in batch])
        with record(backbone.model, [middle], positions) as seen, record(backbone.model, [last], encoded.last) as ends:
            predicted[batch] = backbone.last_logits(encoded).argmax(-1).cpu()
        subjects[batch], objects[batch] = seen[middle].float().cpu(), ends[last].float().cpu()
    return _States(subjects, objects, predicted)


def _encode(backbone: Backbone, requests: Sequence[EditRequest]) -> tuple[Encoded, Tensor]:
    """Edit prompts as a batch, and where their subjects end in it."""
    prompts = [Wordings.of(request) for request in requests]
    texts = [prompt.texts[0] for prompt in prompts]
    return backbone.encode(texts), subject_positions(backbone, texts, [prompt.subject_ends[0] for prompt in prompts])


def _spoken(backbone: Backbone, objects: Tensor) -> Tensor:
    """The ids (N,) that the model says where its last block leaves these states (N, D).

    They are put into a pass over one token, so that the model itself reads them out.
    """
    single = backbone.encode([str(backbone.tokenizer.eos_token or backbone.tokenizer.pad_token)])
    ids = []
    for part in torch.split(objects, _READ):
        encoded = _copies(single, len(part))
        with steer(backbone.model, {Site(backbone.n_layers - 1, "resid_post"): _put(part)}, encoded.last):
            ids.append(backbone.last_logits(encoded).argmax(-1).cpu())
    return torch.cat(ids)


def _put(objects: Tensor) -> Steering:
    return lambda values: objects.to(values)


def _relations(cases: Sequence[EditCase]) -> Iterator[list[EditRequest]]:
    groups: dict[str, list[EditRequest]] = {}
    for case in cases:
        groups.setdefault(relation_of(case.request), []).append(case.request)
    yield from groups.values()
