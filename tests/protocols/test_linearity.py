"""How linear relations are in a model, and how that goes with the success of edits."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from functools import partial

import pytest
import torch

from mega_pl.asking import NextToken
from mega_pl.backbone import Site, record, steer
from mega_pl.edits import EditCase, EditRequest
from mega_pl.functional.linearity import spearman
from mega_pl.protocols import EvalRow
from mega_pl.protocols.linear_relations import Faithfulness, jacobian, relation_linearity
from mega_pl.protocols.linearity import PROTOCOL, LinearityTest, linearity_tests

PLACES = ["France", "Germany", "Italy", "Rome", "London", "Danielle Darrieux"]


def request(i: int, prompt: str = "The capital of {} is", relation: str = "P36") -> EditRequest:
    return EditRequest(
        edit_id=f"{relation} {i}",
        prompt=prompt,
        subject=PLACES[i],
        target_new="Rome",
        target_true="Paris",
        relation=relation,
    )


def examples(prompt: str = "The capital of {} is", relation: str = "P36", n: int = 6) -> list[EditCase]:
    return [EditCase(request=request(i, prompt, relation)) for i in range(n)]


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "gemma2", "gpt_neox"])
def test_the_jacobian_is_the_derivative(tiny_backbone, model_type):
    backbone = tiny_backbone(model_type)
    asked = request(0)
    slopes = jacobian(backbone, asked, 1, rows=20)
    assert slopes.shape == (32, 32)
    encoded = backbone.encode([asked.filled])
    place = torch.tensor([len(backbone.tokenizer("The capital of France")["input_ids"]) - 1])
    direction = torch.randn(32, generator=torch.Generator().manual_seed(0))
    ends = []
    for step in (1e-2, -1e-2):  # both sides, so that the error is of the second order
        with (
            torch.no_grad(),
            steer(backbone.model, {Site(1, "resid_post"): partial(torch.add, step * direction)}, place),
            record(backbone.model, [Site(3, "resid_post")], encoded.last) as seen,
        ):
            backbone.model(**encoded.inputs)
        ends.append(seen[Site(3, "resid_post")][0])
    slope = (ends[0] - ends[1]) / 2e-2
    assert float((slopes @ direction - slope).norm() / slope.norm()) < 0.02
    assert all(not p.requires_grad and p.grad is None for p in backbone.model.parameters())


@pytest.mark.parametrize("estimator", ["ridge", "jacobian"])
def test_against_a_slow_twin(tiny_backbone, estimator):
    backbone = tiny_backbone("gpt2")
    cases = examples()
    judged = relation_linearity(backbone, cases, estimator=estimator, ridge=0.05)
    subjects, objects, said = [], [], []
    for case in cases:
        start = f"The capital of {case.request.subject}"
        encoded = backbone.encode([case.request.filled])
        place = len(backbone.tokenizer(start)["input_ids"]) - 1
        with record(backbone.model, [Site(1, "resid_post"), Site(3, "resid_post")]) as seen:
            said.append(int(backbone.last_logits(encoded).argmax()))
        subjects.append(seen[Site(1, "resid_post")][0, place].double())
        objects.append(seen[Site(3, "resid_post")][0, -1].double())
    spread = torch.stack(subjects) - torch.stack(subjects).mean(0)
    for i, case in enumerate(cases):
        rest = [j for j in range(len(cases)) if j != i]
        s, o = torch.stack([subjects[j] for j in rest]), torch.stack([objects[j] for j in rest])
        if estimator == "ridge":
            penalty = 0.05 * spread.square().sum(1).mean() * torch.eye(32)
            weight = torch.linalg.solve(
                (s - s.mean(0)).T @ (s - s.mean(0)) + penalty, (s - s.mean(0)).T @ (o - o.mean(0))
            )
            guess = (subjects[i] - s.mean(0)) @ weight + o.mean(0)
        else:
            slopes = [jacobian(backbone, cases[j].request, 1).double() for j in rest]
            bias = torch.stack([objects[j] - w @ subjects[j] for j, w in zip(rest, slopes, strict=True)]).mean(0)
            guess = torch.stack(slopes).mean(0) @ subjects[i] + bias
        model = backbone.model
        ids = [int(model.lm_head(model.transformer.ln_f(h.float())).argmax()) for h in (guess, o.mean(0))]
        hits = Faithfulness(linear=ids[0] == said[i], constant=ids[1] == said[i])
        assert judged[case.request.edit_id] == hits


def test_a_relation_that_is_linear_by_construction(tiny_backbone):
    """Where the last block only copies, the object's state is the subject's: a prompt that ends with its subject."""
    backbone = tiny_backbone("gpt2")
    for name, weight in backbone.model.named_parameters():
        if any(f"h.{layer}." in name and "c_proj" in name for layer in (2, 3)):
            weight.zero_()
    cases = [EditCase(request=replace(case.request, prompt="the {}")) for case in examples()]
    assert torch.allclose(jacobian(backbone, cases[0].request, 1), torch.eye(32), atol=1e-5)
    judged = relation_linearity(backbone, cases, estimator="jacobian")
    assert all(answer.linear for answer in judged.values())
    assert not all(answer.constant for answer in judged.values())


def test_small_relations_and_repeated_prompts(tiny_backbone):
    backbone = tiny_backbone("llama")
    small, large = examples(relation="P1", n=4), examples(relation="P2", n=5)
    again = EditCase(request=replace(large[0].request, edit_id="again"))
    judged = relation_linearity(backbone, [*small, *large, again])
    assert set(judged) == {case.request.edit_id for case in [*large, again]}
    assert judged["again"] == judged["P2 0"]
    assert {k: v for k, v in judged.items() if k != "again"} == relation_linearity(backbone, large)
    four_times = [EditCase(request=replace(small[0].request, edit_id=str(i))) for i in range(6)]
    assert relation_linearity(backbone, four_times) == {}


def test_refusals(tiny_backbone):
    backbone = tiny_backbone("gpt2")
    with pytest.raises(ValueError, match=r"`layer` must lie in \[0, 2\], before the last block, but got 3"):
        relation_linearity(backbone, examples(), layer=3)
    with pytest.raises(ValueError, match=r"`estimator` must be one of ridge, jacobian, but got 'lasso'"):
        relation_linearity(backbone, examples(), estimator="lasso")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"`least` must be 2 or more"):
        relation_linearity(backbone, examples(), least=1)


def hand_made(faithful: list[float], success: list[float]) -> list[EvalRow[LinearityTest, NextToken]]:
    """Ten edits a relation with these shares."""
    return [
        EvalRow(
            LinearityTest(
                edit_id=f"{relation} {i}",
                relation=str(relation),
                prompt="p",
                new=("Rome",),
                true="Paris",
                linear=i < 10 * linear,
                constant=False,
            ),
            NextToken(" Paris", (1, 2), (-1.0, -1.0)),
            NextToken(" Rome" if i >= 10 - 10 * hits else " Paris", (1, 2), (-1.0, -1.0)),
        )
        for relation, (linear, hits) in enumerate(zip(faithful, success, strict=True))
        for i in range(10)
    ]


def test_hand_made_scores():
    faithful, success = [0.1, 0.4, 0.6, 1.0], [0.0, 0.5, 0.3, 0.9]
    scores = PROTOCOL.score(hand_made(faithful, success))
    assert scores["faithfulness"].value == scores["faithfulness"].bare == pytest.approx(sum(faithful) / 4)
    assert scores["faithfulness"].n == scores["correlation"].n == 4
    assert (scores["constant"].value, scores["success"].n, scores["success"].bare) == (0, 40, 0)
    assert scores["success"].value == pytest.approx(sum(success) / 4)
    assert scores["correlation"].value == pytest.approx(spearman(torch.tensor(faithful), torch.tensor(success)))
    assert scores["correlation"].ci95[0] <= scores["correlation"].value <= scores["correlation"].ci95[1]
    assert math.isnan(scores["correlation"].bare)
    turned = PROTOCOL.score(hand_made(faithful, success[::-1]))
    assert turned["correlation"].value == pytest.approx(-scores["correlation"].value)
    assert PROTOCOL.score(hand_made(faithful[:2], success[:2]))["correlation"].n == 0
    assert PROTOCOL.score(hand_made(faithful, [0.5] * 4))["correlation"].n == 0
    assert all(score.n == 0 for score in PROTOCOL.score([]).values())


def test_the_protocol(backbone, cases, editors):
    judged = {"france": Faithfulness(linear=True, constant=False)}
    protocol = replace(PROTOCOL, tests=partial(linearity_tests, judged=judged))
    bare = protocol.bare(backbone, cases)
    with editors[2].edit(backbone, [case.request for case in cases]) as edited:
        (row,) = protocol.rows(backbone, edited, cases, bare)
    assert (row.test.edit_id, row.test.relation, row.test.linear) == ("france", "The capital of {} is", True)
    assert row.bare != row.edited
    assert protocol.score([row])["faithfulness"].value == 1


def test_the_lab_model(lab_backbone):
    """A model that knows facts is judged the same whatever the order of the cases."""
    cases = [
        EditCase(request=replace(request(0), edit_id=name, subject=name))
        for name in ("France", "Germany", "Italy", "Spain", "Poland", "Sweden", "Norway", "Japan")
    ]
    judged = relation_linearity(lab_backbone, cases)
    assert judged == relation_linearity(lab_backbone, cases[::-1])
    assert set(judged) == {case.request.edit_id for case in cases}


def test_the_protocol_is_prepared_on_all_cases(tiny_backbone):
    backbone, cases = tiny_backbone("gpt2"), examples()
    assert PROTOCOL.all_tests(cases) == []  # nothing is judged yet
    prepared = PROTOCOL.prepare(backbone, cases)
    judged = relation_linearity(backbone, cases)
    assert {t.edit_id: (t.linear, t.constant) for t in prepared.all_tests(cases)} == {
        edit_id: (found.linear, found.constant) for edit_id, found in judged.items()
    }


def slow_ranks(values):
    return [sum(v < x for v in values) + (sum(v == x for v in values) + 1) / 2 for x in values]


def slow_spearman(a, b):
    x, y = slow_ranks(a), slow_ranks(b)
    n, p, q = len(x), sum(x) / len(x), sum(y) / len(y)
    covariance = sum((x[i] - p) * (y[i] - q) for i in range(n))
    return covariance / math.sqrt(sum((v - p) ** 2 for v in x) * sum((v - q) ** 2 for v in y))


def random_rows(seed: int, relations: int = 7) -> list[EvalRow[LinearityTest, NextToken]]:
    rng = random.Random(seed)
    return [
        EvalRow(
            LinearityTest(
                edit_id=f"{relation} {i}",
                relation=str(relation),
                prompt="p",
                new=("Rome",),
                true="Paris",
                linear=rng.random() < (relation + 1) / 10,
                constant=rng.random() < 0.5,
            ),
            *(NextToken(rng.choice([" Rome", " Paris", " R"]), (1, 2), (-1.0, -1.0)) for _ in range(2)),
        )
        for relation in range(relations)
        for i in range(rng.randint(3, 9))
    ]


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_the_slow_ones(seed):
    rows = random_rows(seed)
    scores = PROTOCOL.score(rows)

    def by_relation(value):
        groups: dict[str, list[float]] = {}
        for row in rows:
            groups.setdefault(row.test.relation, []).append(value(row))
        return [sum(values) / len(values) for values in groups.values()]

    linear = by_relation(lambda row: row.test.linear)
    success = by_relation(lambda row: row.edited.prediction.strip() in ("Rome", "R"))
    before = by_relation(lambda row: row.bare.prediction.strip() in ("Rome", "R"))
    assert scores["faithfulness"].value == pytest.approx(sum(linear) / 7)
    assert scores["constant"].value == pytest.approx(sum(by_relation(lambda row: row.test.constant)) / 7)
    assert scores["correlation"].value == pytest.approx(slow_spearman(linear, success))
    assert scores["correlation"].bare == pytest.approx(slow_spearman(linear, before))
    hits = [row.edited.prediction.strip() in ("Rome", "R") for row in rows]
    assert (scores["success"].value, scores["success"].n) == pytest.approx((sum(hits) / len(hits), len(rows)))
    swapped = PROTOCOL.score([replace(row, edited=row.bare, bare=row.edited) for row in rows])
    assert swapped["correlation"].value != scores["correlation"].value
    assert swapped["success"].value != scores["success"].value
