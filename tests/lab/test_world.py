"""The table of true facts."""

from __future__ import annotations

from collections import Counter

import pytest

from mega_pl.lab.world import World, fill


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.mark.parametrize(("kind", "least"), [("country", 40), ("city", 80), ("person", 200)])
def test_there_are_enough_entities(kind: str, least: int, world: World) -> None:
    assert Counter(world.entities.values())[kind] >= least


def test_there_are_enough_facts(world: World) -> None:
    assert len(world.facts) >= 1500
    assert len({fact.relation for fact in world.facts}) >= 12
    assert len({(fact.subject, fact.relation) for fact in world.facts}) == len(world.facts)


def test_every_relation_has_its_own_wikidata_property(world: World) -> None:
    properties = [relation.property for relation in world.relations.values()]
    assert len(set(properties)) == len(properties)
    assert all(name[0] == "P" and name[1:].isdigit() for name in properties)


def test_every_relation_has_six_phrasings_of_which_two_are_held_out(world: World) -> None:
    for relation in world.relations.values():
        assert len(relation.all_templates) >= 6
        assert len(relation.heldout) == 2
        assert len(set(relation.all_templates)) == len(relation.all_templates)
        assert all(template.count("{}") == 1 for template in relation.all_templates + relation.all_phrases)
        assert set(relation.phrases).isdisjoint(relation.heldout_phrases)


def test_relations_that_begin_two_hops_have_phrases_of_both_kinds(world: World) -> None:
    for first, seconds in world.second_hops.items():
        assert world.relations[first].phrases
        assert world.relations[first].heldout_phrases
        for second in seconds:
            assert world.relations[second].subjects == world.relations[first].objects


def test_prefixes_for_evaluations_are_held_out(world: World) -> None:
    assert set(world.prefixes).isdisjoint(world.heldout_prefixes)


def test_facts_are_about_entities_of_their_kind(world: World) -> None:
    for fact in world.facts:
        relation = world.relations[fact.relation]
        assert world.entities[fact.subject] == relation.subjects
        if relation.objects in ("country", "city", "person"):
            assert world.entities[fact.object] == relation.objects, fact
        assert fact.object == fact.object.strip() != ""


@pytest.mark.parametrize(
    ("subject", "relation", "value"),
    [
        ("France", "capital", "Paris"),
        ("Paris", "country", "France"),
        ("Marie Curie", "birthplace", "Warsaw"),
        ("Pierre Curie", "spouse", "Marie Curie"),
        ("Germany", "currency", "euro"),
    ],
)
def test_well_known_facts_are_true(subject: str, relation: str, value: str, world: World) -> None:
    assert world.answers[subject, relation] == value


def test_spouses_are_mutual(world: World) -> None:
    for fact in world.facts:
        if fact.relation == "spouse":
            assert world.answers[fact.object, "spouse"] == fact.subject


def test_capitals_lie_in_their_countries(world: World) -> None:
    for fact in world.facts:
        if fact.relation == "capital":
            assert world.answers[fact.object, "country"] == fact.subject


def test_names_and_aliases_name_one_entity(world: World) -> None:
    aliases = [alias for names in world.aliases.values() for alias in names]
    assert len(set(aliases)) == len(aliases)
    assert set(aliases).isdisjoint(world.entities)


def test_two_hops_follow_from_two_facts(world: World) -> None:
    assert len(world.two_hops) > 500
    for hop in world.two_hops:
        assert world.answers[hop.subject, hop.first] == hop.bridge
        assert world.answers[hop.bridge, hop.second] == hop.object
        assert hop.object != hop.subject


def test_objects_are_distinct_and_complete(world: World) -> None:
    for relation, pool in world.objects.items():
        assert len(set(pool)) == len(pool)
        assert set(pool) == {fact.object for fact in world.facts if fact.relation == relation}


def test_fill_begins_with_a_capital() -> None:
    assert fill("{} lies in", "the Hague") == "The Hague lies in"
    assert fill("In {}, people", "the Hague") == "In the Hague, people"
