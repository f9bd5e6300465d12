"""What a model's next token is worth, learned from questions put to the model."""

import random
from dataclasses import replace

import pytest
import torch

from mega_pl.backbone import Backbone
from mega_pl.data.relations import relations
from mega_pl.edits.routing import ContentRouter, RouterConfig
from mega_pl.edits.routing.trials import (
    ANYTHING,
    BASE_RELATIONS,
    CAUTION,
    ENOUGH,
    LEAST,
    Outcome,
    Trial,
    base_log_probs,
    hear,
    try_out,
)
from mega_pl.lab.world import World
from tests.edits.routing.conftest import CAPITAL, request

OTHER_TYPES = [r for r in relations().values() if r.subjects == ("person",)][:3]
"""Relations by which no country can be asked about."""

PHRASINGS = [relation.phrasings for relation in relations().values()]


@pytest.fixture(scope="module")
def facts():
    """Two facts each of twenty people, whom the lab's model knows."""
    world = World()
    names = [n for n in world.entities if {(n, "birthplace"), (n, "native language")} <= world.answers.keys()][:20]
    return [
        request(f"{n}, {name}", f"The {name} of {{}} is", n, relation=code, target_true=world.answers[n, name])
        for n in names
        for name, code in (("birthplace", "P19"), ("native language", "P103"))
    ]


def router_of(backbone, edits, **settings):
    return ContentRouter.fit(backbone, edits, list(relations().values()), RouterConfig(**settings))


def test_the_base_is_the_mean_over_other_questions_about_the_subject(lab_backbone: Backbone, facts):
    router = router_of(lab_backbone, facts[:4], answer=False)
    base = base_log_probs(lab_backbone, facts[:4], router.scopes.edits, PHRASINGS)
    for edit, scope, found in zip(facts[:4], router.scopes.edits, base, strict=True):
        others = sorted(scope.rivals - scope.relations)
        random.Random(edit.edit_id).shuffle(others)
        templates = (ANYTHING, *(PHRASINGS[relation][0] for relation in others[:BASE_RELATIONS]))
        token = lab_backbone.answer_ids(edit.filled, edit.target_true)[0]
        chances = [
            lab_backbone.last_logits(lab_backbone.encode([template.replace("{}", edit.subject)])).softmax(-1)[0, token]
            for template in templates
        ]
        assert found.exp() == pytest.approx(float(torch.stack(chances).mean()), rel=1e-3)


def test_what_a_subject_brings_to_mind_anyway_does_not_count(lab_backbone: Backbone, facts):
    """A token that is likely after everything about a subject has a high base, another one a low base."""
    edit, router = facts[0], router_of(lab_backbone, facts[:1], answer=False)
    [usual] = base_log_probs(lab_backbone, [edit], router.scopes.edits, PHRASINGS)
    [strange] = base_log_probs(lab_backbone, [replace(edit, target_true="Madrid")], router.scopes.edits, PHRASINGS)
    assert usual > strange


def test_a_model_that_knows_facts_is_heard_and_a_random_one_hardly(lab_backbone: Backbone, tiny_backbone, facts):
    knows = router_of(lab_backbone, facts).answers
    noise = router_of(tiny_backbone("gpt2"), facts).answers
    assert knows is not None
    assert noise is not None
    assert min(knows.weights) > 0.1
    assert sum(knows.weights) > 3 * sum(noise.weights)


def test_few_trials_teach_little(lab_backbone: Backbone, facts):
    many, few = (router_of(lab_backbone, edits).answers for edits in (facts, facts[:1]))
    assert sum(few.weights) < 0.7 * sum(many.weights)


def test_a_larger_share_of_wrong_trials_lowers_the_threshold(lab_backbone: Backbone, facts):
    router = router_of(lab_backbone, facts, answer=False)
    vectors = router.config.vectors(lab_backbone)
    tried = try_out(facts, router.scopes, PHRASINGS, vectors)
    few, many = (
        hear(lab_backbone, facts, router.scopes, PHRASINGS, tried, share, recall=0.95) for share in (0.02, 0.5)
    )
    assert few is not None
    assert many is not None
    assert few.thresholds > many.thresholds


def test_where_nothing_else_can_be_asked_the_model_is_not_heard(lab_backbone: Backbone):
    relation = [r for r in relations().values() if r.name == "P36"]
    alone = ContentRouter.fit(lab_backbone, [CAPITAL], [*relation, *OTHER_TYPES], RouterConfig())
    assert alone.answers is None
    assert router_of(lab_backbone, [CAPITAL]).answers is not None  # control


def tried_of(wrong, right):
    trials = (Trial(0, "", -1, right=False),) * len(wrong) + (Trial(0, "", -1, right=True),) * len(right)
    logits = torch.tensor([*wrong, *right])
    truth = torch.tensor([trial.right for trial in trials])
    return Outcome(trials, truth, logits, torch.zeros(len(trials), dtype=torch.bool))


def test_a_threshold_lets_the_stated_share_of_wrong_questions_pass_or_lies_between():
    wrong = [float(i) for i in range(100)]
    mixed, apart = tried_of(wrong, [80.0] * 50), tried_of(wrong, [189.0] * 50)
    assert mixed.threshold(mixed.text, 0.1, 0.95) == pytest.approx(90.0)
    assert apart.threshold(apart.text, 0.1, 0.95) == pytest.approx(90 + CAUTION * 99)
    assert mixed.threshold(mixed.text + 1000 * mixed.right, 0.1, 0.95) == pytest.approx(90 + CAUTION * 990)


def test_too_few_wrong_questions_set_no_threshold():
    few, enough = (tried_of([0.0] * count, [1.0] * 50) for count in (ENOUGH - 1, ENOUGH))
    assert few.threshold(few.text, 0.1, 0.95) is None
    assert enough.threshold(enough.text, 0.1, 0.95) is not None


def test_vetoed_questions_do_not_lower_a_threshold_below_all_numbers():
    vetoed = tried_of([-torch.inf] * 100, [1.0] * 50)
    assert vetoed.threshold(vetoed.text, 0.1, 0.95) == pytest.approx(LEAST + CAUTION * (1 - LEAST))


def test_too_few_trials_leave_the_template_banks_threshold(lab_backbone: Backbone, facts):
    alone, other = (router_of(lab_backbone, [fact], answer=False).scopes.matcher for fact in facts[:2])
    assert alone.threshold == other.threshold
    assert router_of(lab_backbone, facts, answer=False).scopes.matcher.threshold != alone.threshold
