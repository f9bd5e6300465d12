"""Relation evidence in a calibration against a slow twin, and the thresholds on fresh questions."""

import math
from typing import Any

import pytest
import torch

from mega_pl.data.relations import relations
from mega_pl.edits.routing import calibration as module
from mega_pl.edits.routing.matcher import EVIDENCE, SHARPNESS, STRANGE, head_noun, masked, stems
from mega_pl.functional.logistic import fit_logistic
from tests.edits.routing.conftest import RATE, RECALL, calibrated

_, WORDING, POSTERIOR, NOUN, STRANGE_NOUN, STRANGE_WORDS = range(len(EVIDENCE))


def calibration(bank, vectors, seed):
    """What a fit with some seed is calibrated on: questions, trials, their evidence (N, 6), and the matcher."""
    kept: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        found = module._evidence

        def keep(matcher, relations, questions, points, trials):
            kept.update(questions=questions, trials=trials)
            kept["evidence"] = found(matcher, relations, questions, points, trials)
            return kept["evidence"]

        patch.setattr(module, "_evidence", keep)
        kept["matcher"] = calibrated(bank, vectors, seed)
    return kept


def slow_evidence(matcher, vectors, trial, questions, subjects):
    """The evidence of one trial in loops; `subjects` are the types that each relation leads from."""
    owners, texts = matcher.owners.tolist(), questions.texts
    asked, text = questions.inner[trial.question], texts[trial.question]
    point = matcher.space(vectors([text]))[0]
    unknown = trial.right and trial.hides

    def best_of(point, hidden):
        best = [-1.0] * len(matcher.relations)
        for j, owner in enumerate(owners):
            if not hidden(j):
                best[owner] = max(best[owner], float(point @ matcher.references[j]))
        return best

    best = best_of(point, lambda j: j == trial.question or (trial.hides and not trial.right and owners[j] == asked))
    own = {trial.relation}
    if unknown:  # the relations that the prompt alone is near to
        near = best_of(matcher.references[trial.prompt], lambda j: j == trial.prompt)
        order = sorted(range(len(near)), key=lambda r: -near[r])[:3]
        own = {r for r in order if near[r] >= near[order[0]] - 0.2}
    wording = float(point @ matcher.references[trial.prompt])
    nearest = max(wording, *(best[r] for r in own))
    kinds = {kind for r in own for kind in subjects[r]}
    rivals = [b for r, b in enumerate(best) if r not in own and kinds & set(subjects[r])]
    others = [*rivals, -1.0]  # and that an author says nothing of
    posterior = SHARPNESS * nearest - math.log(sum(math.exp(SHARPNESS * b) for b in (nearest, *others)))
    nouns = matcher.noun_relations(text) - ({asked} if trial.hides and not trial.right else set())
    mine = bool(nouns & (own | matcher.noun_relations(texts[trial.prompt])))
    rest = [texts[j] for j, owner in enumerate(owners) if owner in own and j != trial.question]
    head = float(bool(head_noun(text)) and head_noun(text) not in stems(rest))
    if nouns and not mine:
        head = 1.0 if unknown else math.inf
    strange = min(STRANGE, len(stems([text]) - stems(rest)))
    return [nearest, wording, posterior, float(mine), -head, -float(strange)]


def test_evidence_is_that_of_a_loop(template_bank, vectors):
    kept = calibration(template_bank, vectors, 0)
    trials, subjects = kept["trials"], [relation.subjects for relation in template_bank]
    kinds = [(right, hides) for right in (False, True) for hides in (False, True)]
    chosen = [[i for i, t in enumerate(trials) if (t.right, t.hides) == kind][::101] for kind in kinds]
    assert all(len(of_kind) > 10 for of_kind in chosen)  # control
    for i in (i for of_kind in chosen for i in of_kind):
        wanted = slow_evidence(kept["matcher"], vectors, trials[i], kept["questions"], subjects)
        torch.testing.assert_close(kept["evidence"][i], torch.tensor(wanted), atol=2e-3, rtol=1e-3)


def test_trials_are_right_for_their_own_relation_alone(template_bank, vectors):
    kept = calibration(template_bank, vectors, 0)
    owners, inner = kept["matcher"].owners.tolist(), kept["questions"].inner
    for trial in kept["trials"]:
        asked = inner[trial.question]
        assert trial.right == (trial.relation == asked)
        assert owners[trial.prompt] == trial.relation
        assert trial.prompt != trial.question
        assert set(template_bank[asked].subjects) & set(template_bank[trial.relation].subjects)


def test_more_evidence_never_counts_against_an_edit(matcher):
    assert len(matcher.weights) == len(EVIDENCE)
    assert (matcher.weights >= 0).all()
    assert (matcher.weights[[WORDING, POSTERIOR, NOUN, STRANGE_NOUN, STRANGE_WORDS]] > 0.05).all()


def passing(matcher, kept):
    """The shares that pass of foreign questions by relations that are left out, of others, and of own questions of
    edits that say their relation and of those that do not."""
    logits = matcher.logits(kept["evidence"])
    right, hides = (torch.tensor([getattr(trial, name) for trial in kept["trials"]]) for name in ("right", "hides"))
    phrasings = {question for relation in relations().values() for question in masked(relation.phrasings)}
    whole = torch.tensor([kept["questions"].texts[trial.question] in phrasings for trial in kept["trials"]])
    passes = logits >= matcher.least(~(right & hides))
    groups = (hides & ~right & whole, ~hides & ~right & whole, right & ~hides, right & hides)
    return [float(passes[rows].float().mean()) for rows in groups]


@pytest.mark.parametrize("seed", [1, 2])
def test_the_stated_shares_hold_on_fresh_questions(template_bank, vectors, matcher, seed):
    unknown, known, own, unsaid = passing(matcher, calibration(template_bank, vectors, seed))
    assert RATE / 2 < unknown < 1.3 * RATE
    assert known < unknown  # relations that the references hold are told apart better
    assert own > 0.8
    assert unsaid == pytest.approx(RECALL, abs=0.03)


@pytest.mark.parametrize(("rate", "recall"), [(0.02, 0.99), (0.3, 0.5)])
def test_the_shares_are_those_that_were_asked_for(template_bank, vectors, rate, recall):
    fitted = calibrated(template_bank, vectors, rate=rate, recall=recall)
    unknown, _, _, unsaid = passing(fitted, calibration(template_bank, vectors, 0))  # the questions of the fit itself
    assert unknown == pytest.approx(rate, abs=0.002)
    assert unsaid == pytest.approx(recall, abs=0.002)


def test_questions_without_meaning_cannot_be_told_apart(template_bank):
    """Control: the vectors, not the calibration, make own questions pass."""
    draw = torch.Generator().manual_seed(0)

    def noise(questions):
        return torch.randn(len(questions), 64, generator=draw)

    kept = calibration(template_bank, noise, 0)
    evidence = kept["evidence"].clone()
    evidence[:, [NOUN, STRANGE_NOUN, STRANGE_WORDS]] = 0  # which are read from the words
    right = torch.tensor([trial.right for trial in kept["trials"]])
    weights, bias = fit_logistic(evidence[:, :NOUN], right)
    scores = evidence[:, :NOUN] @ weights + bias
    assert float(scores[right].mean() - scores[~right].mean()) < 0.5


def test_the_same_seed_gives_the_same_matcher(template_bank, vectors, matcher):
    again = calibrated(template_bank, vectors)
    assert torch.equal(again.weights, matcher.weights)
    assert (again.bias, again.threshold) == (matcher.bias, matcher.threshold)
    assert calibrated(template_bank, vectors, seed=1).threshold != matcher.threshold
