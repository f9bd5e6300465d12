"""Residue: is the old object still in the model's states, where a linear probe can read it, though it is not said?

After "Suppressed, Not Erased" (arXiv:2609.18985). The probe at a block is a ridge regression from the state of a
prompt's last token to the unembedding row, centred and of unit length, of the first token of its true object. It is
fitted on the bare model and on the prompts of other edits (those of an edit are left out with its fold), and reads the
object, among the old and new ones of all edits, whose row its value is most like.

A probe that cannot read the old object out of the bare model's states says nothing about a residue. Look at the bare
values first: where "ahead" is near one half, or "old" no higher than "new", it only knows what kind of object is asked
for, however far above "chance" it is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mega_pl.asking import BARE, Edited, answer_ids, encoded_batches
from mega_pl.backbone import Backbone, Site, record
from mega_pl.edits import EditCase
from mega_pl.errors import MegaValueError
from mega_pl.evaluation.protocol import Protocol
from mega_pl.evaluation.trials import Trial
from mega_pl.metrics.scores import Score, rate_score

DEPTHS = ("quarter", "half", "three_quarters", "last")
"""The blocks after which states are read."""

FOLDS = 5
"""Parts of the edits, each judged by probes that were fitted on the others."""


@dataclass(frozen=True, kw_only=True)
class ResidueTest:
    """The prompt of an edit.

    Args:
        edit_id: The edit.
        prompt: What the model reads.
        new: The new object.
        old: The object before the edit.
    """

    edit_id: str
    prompt: str
    new: str
    old: str


@dataclass(frozen=True, kw_only=True)
class ResidueAnswer:
    """What probes read out of a prompt's states.

    Args:
        new: By depth how many objects the probe puts before the new one.
        old: The same for the old one.
        candidates: Number of objects.
    """

    new: tuple[int, ...]
    old: tuple[int, ...]
    candidates: int


ResidueTrial = Trial[ResidueTest, ResidueAnswer]


@dataclass(frozen=True, eq=False)
class Probes:
    """Fitted probes of a backbone.

    Args:
        sites: Where states are read, by depth.
        edits: By edit id its fold and, among C candidates, the places of its new and of its old object.
        maps: By fold and depth the weight (D, C) and the bias (C,) that give each candidate's likeness, in float64.
    """

    sites: tuple[Site, ...]
    edits: dict[str, tuple[int, int, int]]
    maps: tuple[tuple[tuple[Tensor, Tensor], ...], ...]


def fit_probes(backbone: Backbone, cases: Sequence[EditCase], *, ridge: float = 0.1) -> Probes:
    """Fit probes on the bare model: on edit prompts, paraphrases and neighbourhood prompts with their true object.

    Args:
        backbone: The bare model.
        cases: Edits; those whose objects begin with the same token have no place among the probes' edits.
        ridge: Multiple of the states' mean square distance from their mean.

    Raises:
        ValueError: If there are fewer than two edits, or an object merges with its prompt.
    """
    if len(cases) < 2:
        raise MegaValueError(f"`cases` must hold 2 edits or more, so that one can be left out, but got {len(cases)}.")
    prompts = [case.request.filled for case in cases]
    new = _first_tokens(backbone, prompts, [case.request.target_new for case in cases])
    old = _first_tokens(backbone, prompts, [case.request.target_true for case in cases])
    candidates = sorted({*new, *old})
    unembedding = backbone.model.get_output_embeddings().weight.detach().double().cpu()
    rows = normalize(unembedding[candidates] - unembedding.mean(0))

    texts = [(c.request.filled, *c.paraphrase_prompts, *c.neighborhood_prompts) for c in cases]
    owners = torch.tensor([i for i, of_case in enumerate(texts) for _ in of_case])
    targets = rows[[candidates.index(token) for token in old]][owners]
    sites = tuple(Site(-(-backbone.n_layers * k // 4) - 1, "resid_post") for k in range(1, len(DEPTHS) + 1))
    states = _states(backbone, BARE, [text for of_case in texts for text in of_case], sites)
    folds = min(FOLDS, len(cases))
    maps = []
    for fold in range(folds):
        others = owners % folds != fold
        fitted = [_ridge(of_site[others], targets[others], ridge) for of_site in states]
        maps.append(tuple((weight @ rows.T, bias @ rows.T) for weight, bias in fitted))
    edits = {
        case.request.edit_id: (i % folds, candidates.index(a), candidates.index(b))
        for i, (case, a, b) in enumerate(zip(cases, new, old, strict=True))
        if a != b
    }
    return Probes(sites, edits, tuple(maps))


def _first_tokens(backbone: Backbone, prompts: Sequence[str], objects: Sequence[str]) -> list[int]:
    return [ids[0] for ids in answer_ids(backbone, prompts, objects)[0]]


def _ridge(x: Tensor, y: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """W and b of argmin Σ |W x + b − y|² + λ |W|² with λ = ridge · Σ |x − x̄|² / N, for rows x (N, D) and y (N, K)."""
    centred = x - x.mean(0)
    penalty = ridge * centred.square().sum(1).mean()
    gram = centred.T @ centred + penalty * torch.eye(x.shape[1]).to(x)
    weight = torch.linalg.solve(gram, centred.T @ (y - y.mean(0)))
    return weight, y.mean(0) - x.mean(0) @ weight


@torch.no_grad()
def _states(backbone: Backbone, edited: Edited, prompts: Sequence[str], sites: Sequence[Site]) -> Tensor:
    """The states (S, N, D) of prompts' last tokens with every edit in force, in float64 on the CPU."""
    states = torch.empty(len(sites), len(prompts), backbone.width, dtype=torch.float64)
    for rows, encoded in encoded_batches(backbone, [edited.prompt(prompt) for prompt in prompts]):
        with record(backbone.model, sites, encoded.last) as seen:
            backbone.last_logits(encoded)  # not the decoder alone, which is below the edits
        for i, site in enumerate(sites):
            states[i, rows] = seen[site].double().cpu()
    return states


def ask_residue(
    probes: Probes, backbone: Backbone, edited: Edited, tests: Sequence[ResidueTest]
) -> list[ResidueAnswer]:
    """Read the states of tests' prompts with the probes of their folds.

    Args:
        probes: What `fit_probes` gave for this backbone.
        backbone: The model, within its edits.
        edited: The edits in force; they say how a prompt is asked.
        tests: What to ask.

    Raises:
        ValueError: If a prompt is too long.
    """
    states = _states(backbone, edited, [test.prompt for test in tests], probes.sites)
    answers = []
    for i, test in enumerate(tests):
        fold, new, old = probes.edits[test.edit_id]
        likeness = [
            state @ weight + bias for state, (weight, bias) in zip(states[:, i], probes.maps[fold], strict=True)
        ]
        before = [tuple(int((values > values[place]).sum()) for values in likeness) for place in (new, old)]
        answers.append(ResidueAnswer(new=before[0], old=before[1], candidates=len(likeness[0])))
    return answers


def score_residue(trials: Sequence[ResidueTrial], *, seed: int = 0) -> dict[str, Score]:
    """Score trials; every edit counts once, and n counts edits.

    "old_half" and its like are the shares of edit prompts in whose states after that depth the probe reads the old
    object before all others, "new_half" and its like the new one; "chance" is the share of either by guessing.
    "ahead_half" and its like are the shares where it reads the old object before the new one, one half by guessing.
    Above the steered sites "old" and "ahead" are better low.

    Args:
        trials: One an edit, in any order.
        seed: Of the bootstrap.
    """
    edits = [trial.test.edit_id for trial in trials]
    measures: dict[str, Callable[[ResidueAnswer, int], bool]] = {
        "old": lambda answer, depth: answer.old[depth] == 0,
        "new": lambda answer, depth: answer.new[depth] == 0,
        "ahead": lambda answer, depth: answer.old[depth] < answer.new[depth],
    }
    scores = {}
    for i, depth in enumerate(DEPTHS):
        for name, measure in measures.items():
            edited = torch.tensor([measure(trial.edited, i) for trial in trials])
            bare = torch.tensor([measure(trial.bare, i) for trial in trials])
            scores[f"{name}_{depth}"] = rate_score(edited, bare, edits, seed=seed)
    chance = torch.tensor([1 / trial.edited.candidates for trial in trials])
    return scores | {"chance": rate_score(chance, chance, edits, seed=seed)}


def residue(probes: Probes) -> Protocol[ResidueTest, ResidueAnswer, ResidueTrial]:
    """The protocol, for one backbone and the cases that probes were fitted with; others have no test.

    Args:
        probes: What `fit_probes` gave.
    """

    def tests(case: EditCase) -> tuple[ResidueTest, ...]:
        request = case.request
        test = ResidueTest(
            edit_id=request.edit_id, prompt=request.filled, new=request.target_new, old=request.target_true
        )
        return (test,) if request.edit_id in probes.edits else ()

    return Protocol(
        name="residue",
        tests=tests,
        ask_bare=lambda backbone, asked: ask_residue(probes, backbone, BARE, asked),
        ask=partial(ask_residue, probes),
        answer=ResidueAnswer,
        row=Trial,
        score=score_residue,
        headline=("ahead_half", "ahead_last", "old_last", "chance"),
        lower_is_better=("old_three_quarters", "old_last", "ahead_three_quarters", "ahead_last"),
    )
