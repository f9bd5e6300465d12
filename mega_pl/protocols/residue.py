"""Residue: is the old object still in the model's states, where a linear probe can read it, though it is not said?

After "Suppressed, Not Erased" (arXiv:2609.18985). The probe at a block is a ridge regression from the state of a
prompt's last token to the unembedding row, centred and of unit length, of the first token of its true object. It is
fitted on the bare model and on the prompts of other edits (those of an edit are left out with its fold), and reads the
object, among the old and new ones of all edits, whose row its value is most like.

A probe that cannot read the old object out of the bare model's states says nothing about a residue. Look at the bare
values first: where "ahead" is near one half, or "old" no higher than "new", it only knows what kind of object is asked
for, however far above "chance" it is.

Every edit counts once. "old_half" and its like are the shares of edit prompts in whose states after that depth the
probe reads the old object before all others, "new_half" and its like the new one; "chance" is the share of either by
guessing. "ahead_half" and its like are the shares where it reads the old object before the new one, one half by
guessing. Above the steered sites "old" and "ahead" are better low; at and below half depth no way is better.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mega_pl.asking import BARE, Edited, answer_ids, encoded_batches
from mega_pl.backbone import Backbone, Site, record
from mega_pl.edits import EditCase
from mega_pl.errors import MegaValueError
from mega_pl.protocols.base import Protocol
from mega_pl.protocols.measures import Mean, Measure
from mega_pl.protocols.rows import EvalRow, Outcomes, outcomes

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
        probes: Digest of what the probes that read it were fitted on, which other edits are part of.
    """

    edit_id: str
    prompt: str
    new: str
    old: str
    probes: str


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


ResidueRow = EvalRow[ResidueTest, ResidueAnswer]


@dataclass(frozen=True, eq=False)
class Probes:
    """Fitted probes of a backbone.

    Args:
        sites: Where states are read, by depth.
        edits: By edit id its fold and, among C candidates, the places of its new and of its old object.
        maps: By fold and depth the weight (D, C) and the bias (C,) that give each candidate's likeness, in float64.
        digest: Of what they were fitted on.
    """

    sites: tuple[Site, ...]
    edits: dict[str, tuple[int, int, int]]
    maps: tuple[tuple[tuple[Tensor, Tensor], ...], ...]
    digest: str


NO_PROBES = Probes((), {}, (), "")
"""What the protocol has before it is prepared; no edit has a test then."""


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
    digest = hashlib.sha256(json.dumps([texts, new, old, ridge]).encode()).hexdigest()[:16]
    return Probes(sites, edits, tuple(maps), digest)


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


def residue_tests(case: EditCase, *, probes: Probes = NO_PROBES) -> tuple[ResidueTest, ...]:
    """The prompt of a case that probes were fitted with; nothing of another.

    Args:
        case: The case.
        probes: What `fit_probes` gave.
    """
    request = case.request
    if request.edit_id not in probes.edits:
        return ()
    return (
        ResidueTest(
            edit_id=request.edit_id,
            prompt=request.filled,
            new=request.target_new,
            old=request.target_true,
            probes=probes.digest,
        ),
    )


def ask_residue(
    backbone: Backbone, edited: Edited, tests: Sequence[ResidueTest], *, probes: Probes = NO_PROBES
) -> list[ResidueAnswer]:
    """Read the states of tests' prompts with the probes of their folds.

    Args:
        backbone: The model, within its edits.
        edited: The edits in force; they say how a prompt is asked.
        tests: What to ask.
        probes: What `fit_probes` gave for this backbone.

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


def _reads_old(depth: int, test: ResidueTest, answer: ResidueAnswer) -> bool:
    return answer.old[depth] == 0


def _reads_new(depth: int, test: ResidueTest, answer: ResidueAnswer) -> bool:
    return answer.new[depth] == 0


def _old_is_ahead(depth: int, test: ResidueTest, answer: ResidueAnswer) -> bool:
    return answer.old[depth] < answer.new[depth]


def _guesses(test: ResidueTest, answer: ResidueAnswer) -> float:
    return 1 / answer.candidates


def _every(judge: Callable[[ResidueTest, ResidueAnswer], float], rows: Sequence[ResidueRow]) -> Outcomes:
    return outcomes(rows, judge)


def _measures() -> dict[str, Measure]:
    found: dict[str, Measure] = {}
    for i, depth in enumerate(DEPTHS):
        above = depth in ("three_quarters", "last")
        for name, judge in {"old": _reads_old, "new": _reads_new, "ahead": _old_is_ahead}.items():
            better = (name == "new") if above else None
            found[f"{name}_{depth}"] = Mean(partial(_every, partial(judge, i)), higher_is_better=better)
    return found | {"chance": Mean(partial(_every, _guesses), higher_is_better=None)}


def with_probes(probes: Probes) -> Protocol[ResidueTest, ResidueAnswer, ResidueRow]:
    """The protocol for one backbone and the cases that probes were fitted with; others have no test.

    Args:
        probes: What `fit_probes` gave.
    """
    tests, ask = partial(residue_tests, probes=probes), partial(ask_residue, probes=probes)
    return replace(PROTOCOL, tests=tests, ask=ask, adapted=True)


def _adapt(backbone: Backbone, cases: Sequence[EditCase]) -> Protocol[ResidueTest, ResidueAnswer, ResidueRow]:
    return with_probes(fit_probes(backbone, cases))


PROTOCOL: Protocol[ResidueTest, ResidueAnswer, ResidueRow] = Protocol(
    name="residue",
    tests=residue_tests,
    ask=ask_residue,
    answer=ResidueAnswer,
    measures=_measures,
    headline=("ahead_half", "ahead_last", "old_last", "chance"),
    adapt=_adapt,
)
