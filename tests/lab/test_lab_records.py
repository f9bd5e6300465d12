"""The lab's edits, and the tests that judge them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mega_pl.edits import EditCase
from mega_pl.fitting.prompts import PREFIXES, PromptConfig, expand
from mega_pl.lab.data import LabDataModule
from mega_pl.lab.records import DEV, SHARES, Record, RecordMaker, Split, write_records
from mega_pl.lab.world import World, fill

SPLITS: tuple[Split, ...] = ("dev", "test")
AXES = ("Relation_Specificity", "Subject_Aliasing", "Compositionality_I", "Compositionality_II")


@pytest.fixture(scope="module")
def maker() -> RecordMaker:
    return RecordMaker(World())


@pytest.fixture(scope="module")
def cases() -> list[EditCase]:
    found = []
    for split in SPLITS:
        data = LabDataModule(split=split)
        data.setup("fit")
        found += data.cases
    return found


def records(maker: RecordMaker) -> list[Record]:
    return [record for split in SPLITS for record in maker.counterfact(split)]


def heldout(world: World) -> re.Pattern[str]:
    """What only evaluations may say: held-out phrasings, noun phrases and prefixes, of any subject."""
    texts = [t for r in world.relations.values() for t in (*r.heldout, *r.heldout_phrases)]
    patterns = [re.escape(text).replace(r"\{\}", ".+") for text in texts]
    return re.compile("|".join((*patterns, *map(re.escape, world.heldout_prefixes))), re.IGNORECASE)


def assert_unheard(texts: set[str], world: World) -> None:
    pattern = heldout(world)
    found = {text: match[0] for text in texts if (match := pattern.search(text))}
    assert not found


def test_there_are_enough_edits_and_splits_are_disjoint(maker: RecordMaker) -> None:
    assert len(maker.edits) == sum(SHARES.values()) >= 300
    ids = {split: {record["case_id"] for record in maker.counterfact(split)} for split in SPLITS}
    assert len(ids["dev"]) == DEV
    assert not ids["dev"] & ids["test"]
    assert len(ids["dev"] | ids["test"]) == len(maker.edits)
    facts = [(fact.subject, fact.relation) for fact, _ in maker.edits]
    assert len(set(facts)) == len(facts)


def test_every_split_has_every_frequent_relation(maker: RecordMaker) -> None:
    for split in SPLITS:
        found = {record["requested_rewrite"]["relation_id"] for record in maker.counterfact(split)}
        assert {maker.world.relations[name].property for name, share in SHARES.items() if share >= 14} <= found


def test_both_files_speak_of_the_same_edits(maker: RecordMaker) -> None:
    for split in SPLITS:
        for a, b in zip(maker.counterfact(split), maker.rippleedits(split), strict=True):
            rewrite, edit = a["requested_rewrite"], b["edit"]
            assert a["case_id"] == b["case_id"]
            assert rewrite["subject"] == edit["subject"]
            assert rewrite["target_new"]["str"] == edit["target"]
            assert rewrite["target_true"]["str"] == edit["original_fact"]["target"]
            assert rewrite["relation_id"] == edit["relation"]


def test_a_seed_gives_the_same_records(maker: RecordMaker, tmp_path: Path) -> None:
    paths = write_records(tmp_path, "dev")
    assert json.loads(paths[0].read_text("utf-8")) == maker.counterfact("dev")
    assert json.loads(paths[1].read_text("utf-8")) == maker.rippleedits("dev")
    assert RecordMaker(maker.world, seed=1).edits != maker.edits


def test_true_objects_are_true_and_new_ones_false(maker: RecordMaker) -> None:
    for fact, new in maker.edits:
        assert maker.world.answers[fact.subject, fact.relation] == fact.object
        assert new in maker.world.objects[fact.relation]
        assert new.split()[0] != fact.object.split()[0]


def test_nothing_that_fits_is_held_out(maker: RecordMaker) -> None:
    texts = set()
    for record in records(maker):
        texts |= {record["requested_rewrite"]["prompt"], *record["source_list"]}
        for name in ("implication_list", "contrast_list"):
            texts |= {text for group in record[name] for text in group}
    assert_unheard(texts, maker.world)


def test_nothing_that_is_expanded_is_held_out(cases: list[EditCase]) -> None:
    config = PromptConfig()
    sets = [expand(case.request, config) for case in cases[::20]]
    assert_unheard({text for prompts in sets for text in (*prompts.source, *prompts.target)}, World())


def prompts_of(case: EditCase) -> Iterator[str]:
    yield from case.paraphrase_prompts
    for axis in ("relation_specificity", "compositionality_1", "compositionality_2", "subject_aliasing"):
        yield from (probe.prompt for probe in getattr(case, axis))


def test_readers_keep_every_edit_with_its_tests(maker: RecordMaker, cases: list[EditCase]) -> None:
    assert [case.request.edit_id for case in cases] == [str(i) for i in range(len(maker.edits))]
    for case in cases:
        assert len(case.paraphrase_prompts) == 2
        assert len(case.request.phrasings) in (5, 6)  # a held-out phrasing may end with one of them
        assert not set(prompts_of(case)) & set(case.request.phrasings)
    for axis in ("relation_specificity", "compositionality_1", "compositionality_2", "subject_aliasing"):
        assert sum(bool(getattr(case, axis)) for case in cases) >= 20, axis
    assert sum(bool(case.neighborhood_prompts) for case in cases) >= 150


def answers_to(world: World, answers: dict[tuple[str, str], str]) -> dict[str, str]:
    """What a world answers to any held-out or free phrasing of any one-hop or two-hop question, by any name."""
    told = {}
    for (subject, name), value in answers.items():
        for called in (subject, *world.aliases.get(subject, ())):
            for template in world.relations[name].all_templates:
                told[fill(template, called)] = value
        for second in world.second_hops.get(name, ()):
            if (value, second) in answers:
                for phrase in world.relations[name].all_phrases:
                    for template in world.relations[second].all_templates:
                        told[fill(template, phrase.replace("{}", subject))] = answers[value, second]
    return told


def test_every_test_holds_alone_and_with_all_edits_made(maker: RecordMaker) -> None:
    """Neighbours keep the old object, and probes have their answers, in the world with every edit made."""
    world = maker.world
    together = answers_to(world, {**world.answers, **maker.edited})
    before = answers_to(world, world.answers)
    for split in SPLITS:
        for record, ripple in zip(maker.counterfact(split), maker.rippleedits(split), strict=True):
            rewrite = record["requested_rewrite"]
            new, true = rewrite["target_new"]["str"], rewrite["target_true"]["str"]
            prompt = fill(rewrite["prompt"], rewrite["subject"])
            assert (before[prompt], together[prompt]) == (true, new)
            for asked in record["neighborhood_prompts"]:
                assert before[asked] == together[asked] == true
            for axis in AXES:
                for test in ripple[axis]:
                    (query,) = test["test_queries"]
                    assert together[query["prompt"]] == query["answers"][0]["value"], (axis, query["prompt"])
                    (condition,) = test["condition_queries"]
                    assert before[condition["prompt"]] == condition["answers"][0]["value"]
                    if axis == "Relation_Specificity":
                        assert before[query["prompt"]] == together[query["prompt"]]


def test_every_test_holds_with_its_own_edit_alone(maker: RecordMaker) -> None:
    world = maker.world
    ripples = [record for split in SPLITS for record in maker.rippleedits(split)]
    draw = torch.randperm(len(ripples), generator=torch.Generator().manual_seed(0))[:6].tolist()
    for index in draw:
        fact, new = maker.edits[index]
        alone = answers_to(world, {**world.answers, (fact.subject, fact.relation): new})
        for axis in AXES:
            for test in ripples[index][axis]:
                (query,) = test["test_queries"]
                assert alone[query["prompt"]] == query["answers"][0]["value"], (axis, query["prompt"])


def test_prefixes_of_paraphrases_are_not_those_of_fits(maker: RecordMaker) -> None:
    for record in records(maker):
        assert not any(prompt.startswith(PREFIXES) for prompt in record["paraphrase_prompts"])
        assert record["paraphrase_prompts"][0].startswith(maker.world.heldout_prefixes)
