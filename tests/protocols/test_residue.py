"""Linear probes for the old object: how they are fitted, on what, and what is read with them."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, replace

import pytest
import torch

from mega_pl import EditBank
from mega_pl.asking import BARE
from mega_pl.backbone import Backbone, Site, record
from mega_pl.editors.protocol import Routed
from mega_pl.edits import EditCase, EditRequest
from mega_pl.lab.data import LabDataModule
from mega_pl.protocols import EvalRow
from mega_pl.protocols.residue import (
    DEPTHS,
    PROTOCOL,
    Probes,
    ResidueAnswer,
    ResidueTest,
    ask_residue,
    fit_probes,
    residue_tests,
    with_probes,
)

OBJECTS = ("Paris", "Rome", "Berlin", "London", "Spanish", "French", "English")


def made(n: int = 7) -> list[EditCase]:
    return [
        EditCase(
            request=EditRequest(
                edit_id=str(i),
                prompt="The capital of {} is",
                subject=f"Place {i}",
                target_true=OBJECTS[i % 7],
                target_new=OBJECTS[(i + 3) % 7],
            ),
            paraphrase_prompts=(f"Place {i} has its capital in",),
            neighborhood_prompts=(f"The capital of Land {i} is", f"Land {i} is near"),
        )
        for i in range(n)
    ]


def states_of(backbone: Backbone, text: str) -> list[torch.Tensor]:
    sites = [Site(layer, "resid_post") for layer in range(backbone.n_layers)]
    with record(backbone.model, sites) as seen, torch.no_grad():
        backbone.model(**backbone.encode([text]).inputs)
    return [seen[site][0, -1].double() for site in sites]


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("n", [3, 7])
def test_against_a_slow_twin(backbone, editors, which, n):
    """Example by example: the bias is a column of its own that the penalty leaves alone."""
    cases, ridge = made(n), 0.05
    probes = fit_probes(backbone, cases, ridge=ridge)
    protocol = with_probes(probes)
    names = sorted({o for c in cases for o in (c.request.target_true, c.request.target_new)})
    tokens = {name: backbone.answer_ids("The capital of Place 0 is", name)[0] for name in names}
    rows = backbone.model.lm_head.weight.double()
    vector = {name: rows[token] - rows.mean(0) for name, token in tokens.items()}
    examples = [
        (i % min(5, n), states_of(backbone, text), vector[case.request.target_true])
        for i, case in enumerate(cases)
        for text in (case.request.filled, *case.paraphrase_prompts, *case.neighborhood_prompts)
    ]
    bare = protocol.bare(backbone, cases)
    fitted = {}
    with editors[which].edit(backbone, [case.request for case in cases]) as edited:
        answers = ask_residue(backbone, edited, protocol.all_tests(cases), probes=probes)
        asked = [states_of(backbone, edited.prompt(case.request.filled)) for case in cases]
    for i, (case, answer) in enumerate(zip(cases, answers, strict=True)):
        for depth in range(4):
            if (i % 5, depth) not in fitted:
                kept = [(s[depth], v / v.norm()) for fold, s, v in examples if fold != i % min(5, n)]
                x = torch.stack([torch.cat([s, torch.ones(1).double()]) for s, _ in kept])
                y = torch.stack([v for _, v in kept])
                spread = (x - x.mean(0)).square().sum(1).mean()
                penalty = ridge * spread * torch.diag(torch.tensor([1.0] * 32 + [0.0]).double())
                fitted[i % 5, depth] = torch.linalg.inv(x.T @ x + penalty) @ x.T @ y
            value = torch.cat([asked[i][depth], torch.ones(1).double()]) @ fitted[i % 5, depth]
            likeness = {name: float(value @ vector[name] / vector[name].norm()) for name in names}
            order = sorted(names, key=lambda name: -likeness[name])
            assert answer.new[depth] == order.index(case.request.target_new)
            assert answer.old[depth] == order.index(case.request.target_true)
            assert answer.candidates == len(names)
    assert (answers == bare) == (which == 0)


def test_an_edit_is_left_out_of_its_own_probe(backbone):
    cases = made()
    changed = [*cases[:-1], replace(cases[-1], request=replace(cases[-1].request, target_true="Rome"))]
    before, after = fit_probes(backbone, cases), fit_probes(backbone, changed)
    own = cases[-1].request.edit_id
    assert before.edits[own][0] == after.edits[own][0] == 1
    for fold, (a, b) in enumerate(zip(before.maps, after.maps, strict=True)):
        assert (fold == 1) == all(
            torch.equal(x, y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True)
        )


def test_depths(backbone):
    assert [str(site) for site in fit_probes(backbone, made()).sites] == [f"resid_post.{layer}" for layer in range(4)]
    assert len(DEPTHS) == 4


def test_a_bank_of_the_lab(lab_backbone, bank_folder):
    """What is known to be there is read, below the steered sites nothing moves, and above the new object is ahead."""
    data = LabDataModule(limit=100)
    data.setup("fit")
    bank = EditBank.from_pretrained(bank_folder)
    cases = [*(EditCase(request=request) for request in bank.requests), *data.cases]
    protocol = PROTOCOL.prepare(lab_backbone, cases)
    bare = protocol.bare(lab_backbone, cases)
    known = protocol.score(
        [EvalRow(test, answer, answer) for test, answer in zip(protocol.all_tests(cases), bare, strict=True)]
    )
    assert known["old_last"].bare > 10 * known["chance"].value
    assert known["ahead_last"].bare > 0.7
    edited = [case for case in cases if case.request.edit_id in bank.ids]
    with bank.apply(lab_backbone) as use:
        rows = protocol.rows(lab_backbone, Routed(use), edited, protocol.bare(lab_backbone, edited))
    json.dumps([asdict(row) for row in rows], allow_nan=False)
    for row in rows:
        assert row.edited.old[:2] == row.bare.old[:2]
        assert row.edited.new[-1] < row.edited.old[-1]
        assert row.edited.new[-1] <= row.bare.new[-1]


def hand_made() -> list[EvalRow[ResidueTest, ResidueAnswer]]:
    bare = ResidueAnswer(new=(3, 3, 2, 1), old=(1, 0, 0, 0), candidates=4)
    answers = [((3, 3, 0, 0), (1, 0, 2, 3)), ((3, 3, 1, 0), (1, 0, 0, 1)), ((3, 3, 1, 1), (1, 0, 2, 0))]
    return [
        EvalRow(
            ResidueTest(edit_id=str(i), prompt="p", new="Rome", old="Paris", probes=""),
            bare,
            ResidueAnswer(new=new, old=old, candidates=4),
        )
        for i, (new, old) in enumerate(answers)
    ]


def test_hand_made_scores():
    scores = PROTOCOL.score(hand_made())
    assert {name: (round(s.value, 6), s.bare) for name, s in scores.items()} == {
        **{"old_quarter": (0, 0), "new_quarter": (0, 0), "ahead_quarter": (1, 1)},
        **{"old_half": (1, 1), "new_half": (0, 0), "ahead_half": (1, 1)},
        **{
            "old_three_quarters": (0.333333, 1),
            "new_three_quarters": (0.333333, 0),
            "ahead_three_quarters": (0.333333, 1),
        },
        **{"old_last": (0.333333, 1), "new_last": (0.666667, 0), "ahead_last": (0.333333, 1)},
        "chance": (0.25, 0.25),
    }
    assert all(score.n == 3 for score in scores.values())
    assert all(score.n == 0 for score in PROTOCOL.score([]).values())
    turned = PROTOCOL.score([replace(row, bare=row.edited, edited=row.bare) for row in hand_made()])
    assert turned["old_last"].value == 1


def test_refusals(backbone):
    with pytest.raises(ValueError, match="`cases` must hold 2 edits or more, so that one can be left out, but got 1"):
        fit_probes(backbone, made(1))
    alike = [
        replace(case, request=replace(case.request, target_new=case.request.target_true + " x")) for case in made()
    ]
    probes = fit_probes(backbone, alike)
    assert isinstance(probes, Probes)
    assert not probes.edits
    assert with_probes(probes).tests(alike[0]) == ()
    assert ask_residue(backbone, BARE, [], probes=fit_probes(backbone, made())) == []
    assert residue_tests(made()[0]) == PROTOCOL.tests(made()[0]) == ()  # not prepared


def test_tests_tell_what_probes_were_fitted_on(backbone):
    """Kept answers to the same prompt are others where the probes are."""
    cases = made()
    (one,), (other,), (again,) = (PROTOCOL.prepare(backbone, of).tests(cases[0]) for of in (cases, cases[:-1], made()))
    assert one == again != other
    assert replace(one, probes="") == replace(other, probes="")


def random_rows(seed: int, edits: int = 90) -> list[EvalRow[ResidueTest, ResidueAnswer]]:
    rng = random.Random(seed)

    def answer(most_old: int, most_new: int) -> ResidueAnswer:
        pairs = [(rng.randrange(most_old), rng.randrange(most_new)) for _ in DEPTHS]
        return ResidueAnswer(old=tuple(a for a, _ in pairs), new=tuple(b for _, b in pairs), candidates=8)

    return [
        EvalRow(
            ResidueTest(edit_id=str(edit), prompt="p", new="Rome", old="Paris", probes=""), answer(3, 8), answer(6, 4)
        )
        for edit in range(edits)
    ]


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_the_slow_ones(seed):
    rows = random_rows(seed)
    scores = PROTOCOL.score(rows)
    for i, depth in enumerate(DEPTHS):
        old = [(row.edited.old[i], row.bare.old[i]) for row in rows]
        new = [(row.edited.new[i], row.bare.new[i]) for row in rows]
        for side in (0, 1):
            wanted = {
                "old": sum(not pair[side] for pair in old) / 90,
                "new": sum(not pair[side] for pair in new) / 90,
                "ahead": sum(a[side] < b[side] for a, b in zip(old, new, strict=True)) / 90,
            }
            for name, value in wanted.items():
                score = scores[f"{name}_{depth}"]
                assert (score.bare if side else score.value) == pytest.approx(value, abs=1e-12)
    assert scores["chance"].value == scores["chance"].bare == 1 / 8
