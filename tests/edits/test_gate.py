"""Routing among synthetic questions, and what the gate reads of a model."""

import pytest
import torch
from mega_pl.edits.gate import evidence
from torch.nn import functional as F

from mega_pl.edits import NO_EDIT, Gate, GateConfig
from mega_pl.functional.discriminant import Discriminant

WIDTH, EACH = 24, 6
OWNERS = torch.tensor([0, 0, 1, 2, NO_EDIT, NO_EDIT])
SUBJECTS = ["Rome", "Rome", "Oslo", "Lima", "Rome", "Bonn"]
CONFIG = GateConfig(recall=0.95, false_alarms=0.05)


def phrasings(each=EACH, seed=0, noise=0.15, owners=OWNERS):
    """Evidence of phrasings of each question: its own place, noise, and one direction that says nothing."""
    places = torch.randn(len(owners), WIDTH, generator=torch.Generator().manual_seed(7))
    draw = torch.Generator().manual_seed(seed)
    questions = torch.arange(len(owners)).repeat_interleave(each)
    points = places[questions] + noise * torch.randn(len(questions), WIDTH, generator=draw)
    points[:, 0] += 5 * torch.randn(len(questions), generator=draw)
    return points, questions


def fitted(config=CONFIG):
    points, questions = phrasings()
    return Gate.fit(points, questions, OWNERS, SUBJECTS, config)


def route(gate, points, *, forced=False):
    """Routes of prompts of one token."""
    return gate.route(points[:, None], torch.ones(len(points), 1), forced=forced)


def test_held_out_phrasings_go_to_the_owner_of_their_question():
    points, questions = phrasings(seed=1)
    routes, cosines = route(fitted(), points)
    assert routes.tolist() == OWNERS[questions].tolist()
    assert cosines.shape == (len(points),)


def test_routing_fails_where_phrasings_have_nothing_in_common():
    """Control: the clusters, not the routing, make the test above pass."""
    points, questions = phrasings(seed=1, noise=10.0)
    assert (route(fitted(), points)[0] == OWNERS[questions]).float().mean() < 0.7


def test_the_threshold_lies_between_own_and_foreign_prompts():
    gate, (points, questions) = fitted(), phrasings(seed=1)
    cosines = gate.space(points) @ gate.questions.T
    own = cosines[torch.arange(len(points)), questions][OWNERS[questions] != NO_EDIT]
    foreign = [
        float(cosines[i, q])
        for i in range(len(points))
        for q in range(len(OWNERS))
        if OWNERS[q] != NO_EDIT and SUBJECTS[q] != SUBJECTS[questions[i]]
    ]
    assert max(foreign) < gate.threshold < own.min()


@pytest.mark.parametrize(("recall", "false_alarms"), [(0.95, 0.05), (0.5, 0.5), (0.8, 0.01)])
def test_the_threshold_is_that_of_a_loop(recall, false_alarms):
    points, questions = phrasings()
    gate = fitted(GateConfig(recall=recall, false_alarms=false_alarms))
    z = gate.space(points)
    means = [F.normalize(z[questions == q].mean(0), dim=0) for q in range(len(OWNERS))]
    own, foreign = [], []
    for i, q in enumerate(questions.tolist()):
        if OWNERS[q] != NO_EDIT:
            others = [z[j] for j in range(len(z)) if questions[j] == q and j != i]
            own.append(float(z[i] @ F.normalize(torch.stack(others).mean(0), dim=0)))
        rivals = [p for p in range(len(OWNERS)) if OWNERS[p] != NO_EDIT and SUBJECTS[p] != SUBJECTS[q]]
        foreign.append(max(float(z[i] @ means[p]) for p in rivals))
    low = float(torch.tensor(own).quantile(1 - recall))
    high = float(torch.tensor(foreign).quantile(1 - false_alarms))
    assert gate.threshold == pytest.approx((low + high) / 2, abs=1e-5)


def test_questions_in_one_phrasing_do_not_lower_the_threshold():
    points, questions = phrasings()
    lone = torch.cat([points, phrasings(1, seed=3, owners=torch.zeros(9))[0][6:]])
    owners = torch.cat([OWNERS, torch.tensor([0, 1, 2])])
    names = torch.cat([questions, torch.tensor([6, 7, 8])])
    gate = Gate.fit(lone, names, owners, [*SUBJECTS, "Rome", "Oslo", "Lima"], CONFIG)
    assert gate.threshold > 0.3
    assert route(gate, lone)[0].tolist() == owners[names].tolist()


def test_edits_of_one_subject_set_the_threshold_by_their_own_prompts():
    points, questions = phrasings()
    mine = questions < 2
    gate = Gate.fit(points[mine], questions[mine], OWNERS[:2], SUBJECTS[:2], CONFIG)
    assert gate.threshold > 0.3
    assert (route(gate, -points[mine])[0] == NO_EDIT).float().mean() > 0.4  # it can shut


def test_owned_questions_without_a_second_phrasing_are_refused():
    points, questions = phrasings()
    kept = torch.tensor([0, *range(4 * EACH, 5 * EACH)])
    with pytest.raises(ValueError, match="an edit must own a question in 2 phrasings or more"):
        Gate.fit(points[kept], (questions[kept] > 0).long(), torch.tensor([0, NO_EDIT]), ["Rome", "Rome"], CONFIG)


def test_unknown_questions_open_no_gate():
    far = phrasings(seed=2, owners=torch.zeros(30))[0][-20 * EACH :]
    assert (route(fitted(), far)[0] == NO_EDIT).float().mean() > 0.8


def test_forced_routes_always_choose_the_nearest_edit():
    gate = fitted()
    far = phrasings(seed=2, owners=torch.zeros(30))[0]
    routes, _ = route(gate, far, forced=True)
    owned = gate.owners != NO_EDIT
    nearest = (gate.space(far) @ gate.questions[owned].T).argmax(1)
    assert routes.tolist() == gate.owners[owned][nearest].tolist()


def test_a_disowned_question_shuts_the_gate():
    points, questions = phrasings(seed=1)
    disowned = points[OWNERS[questions] == NO_EDIT]
    gate = fitted()
    low = Gate(gate.space, gate.questions, gate.owners, -1.0)  # so that only the disowned questions can shut it
    assert set(route(low, disowned)[0].tolist()) == {NO_EDIT}
    assert route(low, disowned, forced=True)[0].min() >= 0
    owned = gate.owners != NO_EDIT
    without = Gate(gate.space, gate.questions[owned], gate.owners[owned], -1.0)
    assert route(without, disowned)[0].min() >= 0  # control


def test_any_real_token_opens_the_gate_and_padding_never_does():
    eye = Discriminant(torch.zeros(3), torch.eye(3))
    gate = Gate(eye, torch.eye(3)[:2], torch.tensor([0, 1]), 0.9)
    x, y, z = torch.eye(3)
    prompts = torch.stack([torch.stack([z, x, z]), torch.stack([x, z, y]), torch.stack([x, z, z])])
    mask = torch.tensor([[1, 1, 1], [0, 1, 1], [0, 1, 1]])
    routes, cosines = gate.route(prompts, mask)
    assert routes.tolist() == [0, 1, NO_EDIT]
    assert cosines.tolist() == [1, 1, 0]
    assert gate.route(prompts, torch.ones(3, 3))[0][2] == 0  # control: it was the mask


def test_forgetting_an_edit_moves_later_ones_up_and_keeps_disowned_questions():
    gate, (points, questions) = fitted().without(1), phrasings(seed=1)
    assert gate.owners[:5].tolist() == [0, 0, 1, NO_EDIT, NO_EDIT]
    assert set(gate.owners[5:].tolist()) == {0, 1}
    assert gate.threshold == fitted().threshold
    wanted = torch.tensor([0, 0, NO_EDIT, 1, NO_EDIT, NO_EDIT])[questions]
    assert route(gate, points)[0].tolist() == wanted.tolist()


def test_a_gate_on_its_device_is_the_same():
    gate, moved = fitted(), fitted().to(torch.device("cpu"))
    points = phrasings(seed=1)[0]
    assert torch.equal(route(gate, points)[1], route(moved, points)[1])


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_evidence_is_the_outputs_of_the_blocks_side_by_side(tiny_backbone, family):
    backbone = tiny_backbone(family)
    inputs = backbone.encode(["Rome is", "The capital of France is"]).inputs
    with torch.no_grad():
        states = backbone.model(**inputs, output_hidden_states=True).hidden_states
    got = evidence(backbone, inputs, (0, -2))
    assert torch.equal(got, torch.cat([states[1], states[3]], dim=-1))
    assert got.dtype == torch.float32


@pytest.mark.parametrize("name", ["recall", "false_alarms"])
@pytest.mark.parametrize("value", [0.0, 1.0, -0.5])
def test_shares_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=rf"`{name}` must lie in \(0, 1\), but got {value}"):
        GateConfig(**{name: value})


def test_a_gate_without_layers_is_refused():
    with pytest.raises(ValueError, match="`layers` must name at least one block, but got none"):
        GateConfig(layers=())
