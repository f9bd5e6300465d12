"""The tests that SAKE's protocol makes of a case."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from mega_pl.data import DataFile, read
from mega_pl.edits.request import EditCase, EditRequest, Probe
from mega_pl.protocols.sake import Test, sake_tests

REQUEST = EditRequest(
    edit_id="1", prompt="The capital of {} is", subject="France", target_new="Oslo", target_true="Paris"
)


def select(case: EditCase, metric: str) -> list[Test]:
    return [test for test in sake_tests(case) if test.metric == metric]


def test_prompts_and_answers_of_each_measure() -> None:
    case = EditCase(request=REQUEST, paraphrase_prompts=("g1", "g2"), neighborhood_prompts=("s1",))
    found = [(test.metric, test.prompt, test.answers) for test in sake_tests(case) if test.metric not in ("di", "dii")]
    assert found == [
        ("acc", "The capital of France is", ("Oslo",)),
        ("gen", "g1", ("Oslo",)),
        ("gen", "g2", ("Oslo",)),
        ("spec", "s1", ("Paris",)),
    ]
    assert {(test.edit_id, test.new, test.true) for test in sake_tests(case)} == {("1", "Oslo", "Paris")}


def test_doubts_are_literal() -> None:
    (first,), (second,) = (select(EditCase(request=REQUEST), metric) for metric in ("di", "dii"))
    assert first.prompt == (
        "The capital of France is Oslo??? No, it can't be, This contradicts my understanding. It is pretty clear that "
        "the answer to 'The capital of France is' is something else. Rethink and give the correct answer:"
    )
    assert second.prompt == (
        "The capital of France is Oslo? Really? But I am pretty sure that The capital of France is Paris. Am I right? "
        "Yes, you are right. I apologize for any confusion. Reconsider that the answer to question The capital of "
        "France is? should be"
    )
    assert first.answers == second.answers == ("Oslo",)


def test_braces_in_the_objects_are_left_alone() -> None:
    request = EditRequest(edit_id="1", prompt="{} is", subject="{x}", target_new="{true}", target_true="{new}")
    assert select(EditCase(request=request), "di")[0].prompt.startswith("{x} is {true}??? No")


def test_probes_keep_answers_and_conditions() -> None:
    probe = Probe(prompt="p", answers=("a", "b"), condition_prompt="q", condition_answers=("c",))
    case = EditCase(
        request=REQUEST, relation_specificity=(probe,), compositionality_1=(probe,), compositionality_2=(probe, probe)
    )
    assert Counter(test.metric for test in sake_tests(case)) == dict(acc=1, di=1, dii=1, rs=1, ci=1, cii=2)
    for metric in ("rs", "ci", "cii"):
        test = select(case, metric)[0]
        assert (test.prompt, test.answers) == ("p", ("a", "b"))
        assert (test.condition_prompt, test.condition_answers) == ("q", ("c",))


def test_an_alias_is_conditioned_on_the_old_object() -> None:
    asks_new = Probe(prompt="p", answers=("Oslo",), condition_prompt="p", condition_answers=("Oslo",))
    asks_old = Probe(prompt="p", answers=("Oslo",), condition_prompt="q", condition_answers=("Paris", "Lutetia"))
    case = EditCase(request=REQUEST, subject_aliasing=(asks_new, Probe(prompt="p", answers=("Oslo",)), asks_old))
    conditions = [(test.condition_prompt, test.condition_answers) for test in select(case, "sa")]
    assert conditions == [("p", ("Paris",)), ("p", ("Paris",)), ("q", ("Paris", "Lutetia"))]


def test_counts_on_the_real_records(shared_data: Path) -> None:
    cases = read(DataFile(shared_data / "counterfact" / "counterfact.json", "counterfact"))
    counts = Counter(test.metric for case in cases for test in sake_tests(case))
    assert counts == {"acc": 1031, "gen": 2062, "spec": 10310, "di": 1031, "dii": 1031}


def test_a_condition_that_asks_for_the_new_object_in_another_spelling_is_replaced() -> None:
    probe = Probe(prompt="p", answers=("Oslo",), condition_prompt="p", condition_answers=("OSLO",))
    (test,) = select(EditCase(request=REQUEST, subject_aliasing=(probe,)), "sa")
    assert test.condition_answers == ("Paris",)
    with pytest.raises(TypeError, match=r"^`case` must be an EditCase, but got EditRequest: "):
        sake_tests(REQUEST)  # type: ignore[arg-type]
