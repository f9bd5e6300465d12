"""The bank of relations: its types, nouns and cues, what builds on a fact, and that no cue is an evaluation's."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import combinations
from pathlib import Path

import pytest

from mega_pl.data import evaluation_prompts, implications, noun_phrases, relations
from mega_pl.data.popular import CLOZES
from mega_pl.data.relations import Relation, parse_relations
from mega_pl.edits.request import EditCase

BANK = relations()
TABLE = """
[P36]
label = "capital"
subjects = ["country"]
object = "city"
nouns = ["capital", "seat of government"]
phrasings = ["The capital city of {} is"]
cues = ["{} is ruled from", "Capital of {}:"]
"""


def plain(text: str) -> str:
    return re.sub(r"\s+", " ", text.lower()).strip()


def ends_in(prompts: Iterable[str], templates: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Templates that a prompt is, or ends in, whatever subject they are filled with."""
    by_word: dict[str, list[str]] = defaultdict(list)
    for prompt in set(map(plain, prompts)):
        by_word[prompt.split()[-1]].append(prompt)
    for template in templates:
        before, after = plain(template).split("{}")
        words = [after.split()[-1]] if " " in after else list(by_word)
        pattern = re.compile(rf"(?:^|\W){re.escape(before)}\S.*{re.escape(after)}$")
        for word in words:
            yield from (
                (template, prompt) for prompt in by_word[word] if prompt.endswith(after) and pattern.search(prompt)
            )


def cues() -> list[str]:
    return [cue for relation in BANK.values() for cue in relation.cues]


@pytest.mark.parametrize("relation", BANK.values(), ids=BANK)
def test_every_relation_has_nouns_and_cues(relation: Relation) -> None:
    assert len(set(relation.nouns)) == len(relation.nouns) >= 1
    for noun in relation.nouns:
        assert noun == " ".join(noun.split())
        assert not re.match(r"(the|a|an) ", noun)
        assert "{}" not in noun
    assert 6 <= len({plain(cue) for cue in relation.cues}) == len(relation.cues) <= 10
    for cue in relation.cues:
        assert cue.count("{}") == 1
        assert cue == " ".join(cue.split())
        assert re.search(r"[\w,?:]$", cue), cue
    assert any("?" in cue for cue in relation.cues)


def test_no_wording_stands_for_two_relations() -> None:
    wordings = Counter(plain(text) for relation in BANK.values() for text in (*relation.phrasings, *relation.cues))
    assert [text for text, count in wordings.items() if count > 1] == []
    for one, other in combinations(BANK.values(), 2):  # a noun may be two relations' that no type leads to both of
        shared = set(one.nouns) & set(other.nouns)
        assert not shared or set(one.subjects).isdisjoint(other.subjects), (one.name, other.name, shared)


def test_references_are_all_wordings_of_a_relation() -> None:
    assert parse_relations(TABLE)["P36"].references == (
        "The capital city of {} is",
        "{} is ruled from",
        "Capital of {}:",
        "the capital of {}",
        "the seat of government of {}",
        "{}'s capital",
        "{}'s seat of government",
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('label = "capital"\n', "", "`label` of relation P36 must be given, but is missing."),
        (
            'cues = ["{} is ruled from", "Capital of {}:"]\n',
            "",
            "`cues` of relation P36 must be given, but is missing.",
        ),
        (
            "{} is ruled from",
            "it is ruled from",
            "`cues` of relation P36 must hold exactly one {}, but got 'it is ruled",
        ),
        ("city of {} is", "city of {} and {} is", "`phrasings` of relation P36 must hold exactly one {}, but got 'The"),
        (
            '"seat of government"',
            '"seat of {}"',
            "`nouns` of relation P36 must hold no {}, but got 'seat of {}'.",
        ),
        ('["country"]', '"country"', "`subjects` of relation P36 must be a list of at least one string, but got 'c"),
        (
            '["capital", "seat of government"]',
            "[]",
            "`nouns` of relation P36 must be a list of at least one string, but",
        ),
        ('"city"', "3", "`object` of relation P36 must be a string that is not blank, but got 3."),
        ('"country"', '" "', "`subjects` of relation P36 must be a string that is not blank, but got ' '."),
        (
            "label",
            "name",
            "the fields of relation P36 must be among label, subjects, object, nouns, phrasings, cues, but",
        ),
        ("[P36]", "P19 = 3\n[P36]", "relation P19 must be a table of fields, but got 3."),
    ],
)
def test_a_malformed_bank_is_refused(old: str, new: str, message: str) -> None:
    assert TABLE.count(old) >= 1
    with pytest.raises(ValueError, match=rf"^{re.escape(message)}"):
        parse_relations(TABLE.replace(old, new))


def test_implications_ask_of_the_object_what_is_known_of_its_type() -> None:
    assert implications("P36", 3) == (
        ("The country to which the capital of {} belongs is",),
        ("The continent on which the capital of {} lies is",),
        ("The language in which the capital of {} publishes its laws is",),
    )


def test_a_phrase_that_begins_a_sentence_begins_with_a_capital() -> None:
    assert ("The employer of {} was founded by",) in implications("P108")
    for template in (template for name in BANK for (template,) in implications(name, 100)):
        assert template.count("{}") == 1
        assert template[0].isupper()


@pytest.mark.parametrize("name", BANK)
def test_implications_spread_over_types(name: str) -> None:
    phrase = f"the {BANK[name].nouns[0]} of {{}}"
    objects = {
        second.phrasings[0].replace("{}", phrase).lower(): second.object
        for second in BANK.values()
        if BANK[name].object in second.subjects and second.name != name
    }
    found = implications(name, 100)
    assert {template.lower() for (template,) in found} == set(objects)
    kinds = [objects[template.lower()] for (template,) in found]
    assert len(set(kinds[: len(set(kinds))])) == len(set(kinds))  # no type twice before every type once
    assert implications(name) == found[:4]
    assert implications(name, 0) == ()


@pytest.mark.parametrize("name", ["P103", "P30", "P21", "P569", "P0", ""])
def test_nothing_builds_on_an_object_of_which_nothing_is_known(name: str) -> None:
    assert implications(name) == ()


def test_a_negative_count_is_refused() -> None:
    with pytest.raises(ValueError, match="`count` must be at least 0, but got -1"):
        implications("P36", -1)


def test_noun_phrases_lead_to_the_type() -> None:
    phrases = noun_phrases("country")
    assert {relation.name for relation, _ in phrases} == {"P17", "P27", "P495", "P1376"}
    assert (BANK["P27"], "the country of citizenship of {}") in phrases
    assert (BANK["P26"], "the spouse of {}") in noun_phrases("person")
    assert noun_phrases("dragon") == ()


def test_no_cue_is_a_cloze_of_rippleedits() -> None:
    assert {plain(cloze) for _, cloze in CLOZES.values()}.isdisjoint(map(plain, cues()))


def test_no_cue_is_a_pattern_of_pararel(shared_data: Path) -> None:
    patterns = set()
    for file in (shared_data / "relations" / "patterns").glob("*.jsonl"):
        for line in file.read_text("utf-8").splitlines():
            before, _, after = plain(json.loads(line)["pattern"]).partition("[y]")
            patterns |= {plain(text.replace("[x]", "{}")) for text in (before, before + after)}
    assert len(patterns) > 300
    assert "{} was born in" in patterns
    assert patterns.isdisjoint(map(plain, cues()))


@pytest.mark.parametrize("name", ["counterfact", "easyedit", "rippleedits", "knowedit"])
def test_no_real_evaluation_prompt_ends_in_a_cue(real_cases: dict[str, list[EditCase]], name: str) -> None:
    cases = real_cases[name]
    prompts = [prompt for case in cases for prompt in (case.request.filled, *evaluation_prompts(case))]
    assert list(ends_in(prompts, cues())) == []


def test_a_cue_that_is_an_evaluation_prompt_would_be_seen() -> None:
    prompts = ["A dog barked.  Ann Lee is RULED from", "Capital of Ann:", "Ann Lee is ruled from there"]
    found = ends_in(prompts, parse_relations(TABLE)["P36"].cues)
    assert {template for template, _ in found} == {"{} is ruled from", "Capital of {}:"}
