"""What edits change inside a model, and how edits that took differ from edits that did not (arXiv:2603.20795).

`changes_by` puts each edit into force alone and differences the importances of all layers against the bare model's;
`contrast_of` averages them over successes and over failures, editor by editor. Objects come in the order new, true and
modules in the order attention, MLP wherever a shape says (2, 2, L).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from tqdm import tqdm

from mega_pl.attribution.layers import LayerImportance, layer_importance
from mega_pl.backbone import Backbone
from mega_pl.editors.protocol import Editor
from mega_pl.edits import EditCase
from mega_pl.errors import MegaValueError

Criterion = Literal["argmax", "probability"]
"""When an edit took at a prompt: its new object's token is the likeliest of all, or likelier than the true one's."""


@dataclass(frozen=True, eq=False)
class Changes:
    """How the edits of one editor changed the importances of layers, prompt by prompt, in nats.

    Args:
        editor: Name of the editor.
        edits: Names of the N prompts' edits.
        success: (N,) bool, whether the edit took at the prompt.
        layers: (N, 2, 2, L) change of each module's importance for each object.
        total: (N, 2) change of what all modules together add to the log-probability; the sum of `layers`.
        readout: (N, 2) change of the model's own log-probability that no layer accounts for: what an editor does
            after the last block, and the final norm's bias.
    """

    editor: str
    edits: tuple[str, ...]
    success: Tensor
    layers: Tensor
    total: Tensor
    readout: Tensor


@dataclass(frozen=True, eq=False)
class Contrast:
    """Mean changes of successes minus mean changes of failures.

    Args:
        counts: By editor the numbers of successes and failures; those with too few of either are not in the means.
        success: By contrasted editor (2, 2, L) mean changes of its successes, in nats.
        failure: By contrasted editor the same of its failures.
        mean: (2, 2, L) success minus failure, averaged over the contrasted editors.
        low: (2, 2, L) lower end of the 95 % bootstrap interval over edits.
        high: (2, 2, L) upper end.
        criterion: What counted as a success.
    """

    counts: Mapping[str, tuple[int, int]]
    success: Mapping[str, Tensor]
    failure: Mapping[str, Tensor]
    mean: Tensor
    low: Tensor
    high: Tensor
    criterion: Criterion

    def to_json(self) -> dict[str, Any]:
        """Plain lists, which `from_json` reads."""
        return {
            "counts": {name: list(pair) for name, pair in self.counts.items()},
            **{
                name: {editor: values.tolist() for editor, values in getattr(self, name).items()}
                for name in ("success", "failure")
            },
            **{name: getattr(self, name).tolist() for name in ("mean", "low", "high")},
            "criterion": self.criterion,
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Contrast:
        """What `to_json` gave."""

        def by_editor(name: str) -> dict[str, Tensor]:
            return {editor: torch.tensor(values) for editor, values in fields[name].items()}

        return cls(
            counts={name: (pair[0], pair[1]) for name, pair in fields["counts"].items()},
            success=by_editor("success"),
            failure=by_editor("failure"),
            mean=torch.tensor(fields["mean"]),
            low=torch.tensor(fields["low"]),
            high=torch.tensor(fields["high"]),
            criterion=fields["criterion"],
        )


def changes_by(
    backbone: Backbone, editor: Editor, cases: Sequence[EditCase], *, criterion: Criterion = "argmax"
) -> Changes:
    """Edit fact by fact and see what each edit changes, Δ_k(w) = I_k(w) after the edit − I_k(w) before it.

    Every edit is asked its own prompt, its paraphrases, and the same under other names of its subject, for the first
    tokens in which its objects differ. Both passes read with their own scale of the final norm.

    Args:
        backbone: The bare model.
        editor: Puts the edits into force, one at a time.
        cases: E edits with other ways to ask them.
        criterion: When an edit took.

    Raises:
        ValueError: If there is no case, the criterion is unknown, or one object begins with all of the other.
    """
    if not cases:
        raise MegaValueError("`cases` must hold at least one edit, but got none.")
    if criterion not in get_args(Criterion):
        raise MegaValueError(f"`criterion` must be one of {', '.join(get_args(Criterion))}, but got {criterion!r}.")
    edits: list[str] = []
    success, layers, total, readout = [], [], [], []
    for case in tqdm(cases, desc=f"changes by {editor.name}", unit="edit", dynamic_ncols=True):
        request = case.request
        aliased = (probe.prompt for probe in case.subject_aliasing)
        prompts = [request.filled, *case.paraphrase_prompts, *aliased]
        before, _ = _seen(backbone, prompts, case, criterion)
        with editor.edit(backbone, [request]) as edited:
            after, took = _seen(backbone, [edited.prompt(prompt) for prompt in prompts], case, criterion)
        edits += [request.edit_id] * len(prompts)
        success.append(took)
        layers.append(_by_module(after) - _by_module(before))
        total.append((after.after - after.before) - (before.after - before.before))
        readout.append((after.output - after.after) - (before.output - before.after))
    return Changes(
        editor.name, tuple(edits), torch.cat(success), torch.cat(layers), torch.cat(total), torch.cat(readout)
    )


def contrast_of(
    of_editors: Sequence[Changes],
    *,
    criterion: Criterion = "argmax",
    least: int = 20,
    samples: int = 1000,
    seed: int = 0,
) -> Contrast:
    """Contrast successes with failures, C_k(w) = mean of Δ_k(w) over successes − mean over failures.

    Editors count equally, however often each succeeds. The interval draws edits with replacement, all editors seeing
    the same draw; a draw that leaves an editor without a success or a failure is left out.

    Args:
        of_editors: The changes by each editor, of the same edits.
        criterion: What counted as a success.
        least: Successes and failures that an editor must have.
        samples: Draws of the bootstrap.
        seed: Seed of the draws.

    Raises:
        ValueError: If no editor has as many of both.
    """
    counts = {one.editor: (int(one.success.sum()), int((~one.success).sum())) for one in of_editors}
    kept = [one for one in of_editors if min(counts[one.editor]) >= least]
    if not kept:
        summary = ", ".join(f"{name} {won} and {lost}" for name, (won, lost) in counts.items())
        raise MegaValueError(
            f"an editor must have at least {least} successes and failures to be contrasted, but got {summary}; "
            "take more edits, a harder criterion, or other editors."
        )
    names = sorted({edit for one in kept for edit in one.edits})
    draws = torch.randint(len(names), (samples, len(names)), generator=torch.Generator().manual_seed(seed))
    times = torch.zeros(samples, len(names)).scatter_add_(1, draws, torch.ones(samples, len(names)))
    drawn = torch.stack([_resampled(one, names, times) for one in kept]).mean(0)
    drawn = drawn[drawn.isfinite().flatten(1).all(1)]
    success = {one.editor: one.layers[one.success].mean(0) for one in kept}
    failure = {one.editor: one.layers[~one.success].mean(0) for one in kept}
    return Contrast(
        counts=counts,
        success=success,
        failure=failure,
        mean=torch.stack([success[one.editor] - failure[one.editor] for one in kept]).mean(0),
        low=drawn.quantile(0.025, 0),
        high=drawn.quantile(0.975, 0),
        criterion=criterion,
    )


def _resampled(one: Changes, names: Sequence[str], times: Tensor) -> Tensor:
    """Success minus failure (S, 2, 2, L) of an editor when edit n counts ``times[s, n]`` times."""
    place = {name: i for i, name in enumerate(names)}
    edit = torch.tensor([place[name] for name in one.edits])
    means = []
    for group in (one.success, ~one.success):
        sums = one.layers.new_zeros(len(names), *one.layers.shape[1:]).index_add_(0, edit[group], one.layers[group])
        counts = torch.bincount(edit[group], minlength=len(names)).to(times)
        means.append((times @ sums.flatten(1).to(times)) / (times @ counts)[:, None])
    return (means[0] - means[1]).view(-1, *one.layers.shape[1:])


def _seen(
    backbone: Backbone, prompts: Sequence[str], case: EditCase, criterion: Criterion
) -> tuple[LayerImportance, Tensor]:
    """Importances of both objects after each prompt, and whether the new one wins there."""
    pairs = [_first_difference(backbone, prompt, case) for prompt in prompts]
    texts, targets = [text for text, _ in pairs], torch.tensor([ids for _, ids in pairs])
    seen = layer_importance(backbone, texts, targets)
    if criterion == "probability":
        return seen, (seen.output[:, 0] > seen.output[:, 1]).cpu()
    return seen, seen.predicted.cpu() == targets[:, 0]


def _first_difference(backbone: Backbone, prompt: str, case: EditCase) -> tuple[str, tuple[int, int]]:
    """The prompt up to where its objects differ, and the tokens of the new and the true one there."""
    request = case.request
    new, true = (backbone.answer_ids(prompt, answer) for answer in (request.target_new, request.target_true))
    for i, pair in enumerate(zip(new, true, strict=False)):
        if pair[0] != pair[1]:
            shared = str(backbone.tokenizer.decode(new[:i])).strip()
            return f"{prompt} {shared}" if shared else prompt, pair
    raise MegaValueError(
        f"an object must not begin with all of the other, but those of edit {request.edit_id!r} are "
        f"{request.target_new!r} and {request.target_true!r}."
    )


def _by_module(seen: LayerImportance) -> Tensor:
    """Importances (B, 2, 2, L) on the CPU."""
    return torch.stack([seen.attention, seen.mlp], 2).float().cpu()
