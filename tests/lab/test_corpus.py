"""Text made from the world."""

from __future__ import annotations

import re
from collections import Counter
from itertools import islice

import pytest

from mega_pl.lab.corpus import ANSWER, INVENTED, MIXTURES, TEXT, Corpus
from mega_pl.lab.world import World
from mega_pl.protocols.sake import DOUBT_TEMPLATES


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def test_a_seed_gives_one_corpus(world: World) -> None:
    first, second, other = (list(islice(Corpus(world, seed), 300)) for seed in (5, 5, 6))
    assert first == second
    assert first != other


@pytest.mark.parametrize("mixture", MIXTURES)
def test_a_mixture_names_every_kind_with_its_share(mixture: str, world: World) -> None:
    assert sum(MIXTURES[mixture].values()) == pytest.approx(1)
    for kind in Corpus(world, 0, mixture).kinds:
        assert kind()


@pytest.mark.parametrize("mixture", MIXTURES)
def test_pieces_join_into_clean_text(mixture: str, world: World) -> None:
    for document in islice(Corpus(world, 0, mixture), 2000):
        assert {weight for _, weight in document} <= {TEXT, ANSWER, INVENTED}
        assert any(weight == ANSWER for _, weight in document)
        text = "".join(piece for piece, _ in document)
        assert "{" not in text
        assert "  " not in text
        assert text == text.lstrip()
        for i, (piece, weight) in enumerate(document):
            assert piece
            if weight != TEXT:  # answers follow a prompt after exactly one space, as they do when a model is asked
                assert piece[0] == " "
                assert piece[1:] == piece.strip()
                assert not document[i - 1][0][-1].isspace()


def test_answers_that_stand_alone_are_true(world: World) -> None:
    corpus = Corpus(world, 0)
    for _ in range(500):
        prompt, answer = corpus.question()
        names = {*world.answers.values()}
        assert answer in names
        assert prompt[0].isupper() or not prompt[0].isalpha()


def test_a_counterfactual_is_of_the_relation_and_never_true(world: World) -> None:
    corpus = Corpus(world, 0)
    for fact in world.facts:
        other = corpus.counterfactual(fact)
        assert other in world.objects[fact.relation]
        assert other not in (fact.object, fact.subject)


def test_the_doubts_are_those_that_evaluations_ask(world: World) -> None:
    corpus = Corpus(world, 0)
    patterns = []
    for template in DOUBT_TEMPLATES.values():
        groups = {name: f"(?P<{name}>.+?)" for name in ("prompt", "new", "true")}
        pattern = re.escape(template)
        for name, group in groups.items():
            pattern = pattern.replace(re.escape(f"{{{name}}}"), group, 1).replace(
                re.escape(f"{{{name}}}"), f"(?P={name})"
            )
        patterns.append(re.compile(f"(?:.*[.] )?{pattern} (?P<answer>.+)"))
    found = [0] * len(patterns)
    for _ in range(200):
        text = "".join(piece for piece, _ in corpus.doubt())
        matches = [pattern.fullmatch(text) for pattern in patterns]
        (match,) = filter(None, matches)
        assert match["new"] != match["answer"]
        assert match.groupdict().get("true", match["answer"]) == match["answer"]
        found[matches.index(match)] += 1
    assert min(found) > 50


def test_most_facts_are_met(world: World) -> None:
    text = "\n".join("".join(piece for piece, _ in document) for document in islice(Corpus(world, 0), 20_000))
    assert sum(name in text for name in world.entities) == len(world.entities)


def test_supposed_facts_are_of_rare_relations_as_often_as_of_common_ones(world: World) -> None:
    corpus = Corpus(world, seed=0)
    drawn = Counter(corpus.consequence()[0].relation for _ in range(6000))
    instruments = sum(fact.relation == "instrument" for fact in world.facts)
    citizens = sum(fact.relation == "citizenship" for fact in world.facts)
    assert instruments < citizens / 5  # control
    # Relations that no second question follows are drawn again in three cases of ten.
    assert 0.5 < drawn["instrument"] / drawn["citizenship"] < 1
    assert sorted(hop for path in corpus.paths for hop in map(repr, path)) == sorted(map(repr, world.two_hops))
