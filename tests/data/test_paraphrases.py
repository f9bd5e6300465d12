"""The bank of phrasings, and that no edit is fitted on what its evaluation asks."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from statistics import median
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from mega_pl.data import evaluation_prompts, implications_for, phrasings_for, with_implications, with_phrasings
from mega_pl.data.popular import CLOZES
from mega_pl.data.readers.translations import TranslatedCase, Translation
from mega_pl.data.relations import implications, relations
from mega_pl.edits.request import EditCase, EditRequest, Probe, Query, RippleTest

REQUEST = EditRequest(
    edit_id="1",
    prompt="{} is from",
    subject="Ann Lee",
    target_new="Oslo",
    target_true="Bern",
    relation="P19",
)
BANK = relations()["P19"].phrasings
IMPLIED = implications("P19")


def plain(text: str) -> str:
    return re.sub(r"\s+", " ", text.lower()).strip()


def leaks(cases: Iterable[EditCase]) -> list[tuple[str, str]]:
    """Phrasings and implications that an evaluation prompt of their case is, or ends in; the slow way."""
    found = []
    for case in cases:
        request, prompts = case.request, [plain(prompt) for prompt in evaluation_prompts(case)]
        for template in (*request.phrasings, *(text for group in request.implications for text in group)):
            for name in (request.subject, *request.aliases):
                filled = plain(template.replace("{}", name))
                found += [(template, prompt) for prompt in prompts if prompt[-len(filled) :] == filled]
    return found


@pytest.mark.parametrize("relation", relations())
def test_every_relation_has_six_phrasings_that_end_before_the_object(relation: str) -> None:
    phrasings = relations()[relation].phrasings
    assert len({plain(template) for template in phrasings}) == len(phrasings) >= 6
    for template in phrasings:
        assert template.count("{}") == 1
        assert template == " ".join(template.split())
        assert re.search(r"(\w|,|A:|\})$", template), template
        assert not template.endswith((" a", " an", "{}")), template


def test_no_phrasing_stands_for_two_relations() -> None:
    every = [plain(template) for relation in relations().values() for template in relation.phrasings]
    assert len(every) == len(set(every))


def test_the_bank_covers_the_relations_of_popular() -> None:
    assert {identifier or name for name, (identifier, _) in CLOZES.items()} <= set(relations())
    assert {plain(cloze) for _, cloze in CLOZES.values()}.isdisjoint(
        plain(template) for relation in relations().values() for template in relation.phrasings
    )


def test_the_bank_covers_the_relations_of_counterfact(counterfacts: Sequence[EditCase]) -> None:
    found = {case.request.relation for case in counterfacts}
    assert len(found) == 34
    assert found <= set(relations())


def test_own_phrasings_come_first_and_a_models_last() -> None:
    request = replace(REQUEST, phrasings=("{} hails from", "{}  HAILS from"))
    found = phrasings_for(request, exclude=(), rewrite=lambda _: ["{} grew up in", "{} hails from"])
    assert found == ("{} hails from", *BANK, "{} grew up in")


def test_an_unknown_relation_has_its_own_phrasings_only() -> None:
    assert phrasings_for(replace(REQUEST, relation="P0", phrasings=("{} hails from",)), exclude=()) == (
        "{} hails from",
    )
    assert phrasings_for(replace(REQUEST, relation=""), exclude=()) == ()


@pytest.mark.parametrize(
    "prompt",
    [
        "The birthplace of Ann Lee is",
        "the BIRTHPLACE of  Ann Lee is ",
        "A dog barked. The birthplace of Ann Lee is",
        "Whoever knows knows that the birthplace of ann lee is",
    ],
)
def test_what_an_evaluation_asks_is_left_out(prompt: str) -> None:
    assert phrasings_for(REQUEST, exclude=[prompt]) == tuple(t for t in BANK if t != "The birthplace of {} is")


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("name", ["Ren\u00e9 O'Neill", "Ren\u00e9\u00a0O\u2019NEILL"])
def test_what_an_evaluation_asks_in_another_spelling_is_left_out(form: Literal["NFC", "NFD"], name: str) -> None:
    request = replace(REQUEST, subject="Ren\u00e9 O'Neill", implications=())
    prompt = unicodedata.normalize(form, f"A dog barked. The birthplace\u00a0of {name} is")
    assert phrasings_for(request, exclude=[prompt]) == tuple(t for t in BANK if t != "The birthplace of {} is")
    prompt = prompt.replace("The birth", "The country to which the birth").replace(" is", " belongs is")
    assert implications_for(request, exclude=[prompt]) == IMPLIED[1:]


def test_prompts_and_cases_of_another_type_are_refused() -> None:
    with pytest.raises(TypeError, match=r"^`exclude` must hold prompts, but got str: 'a'; write \['a'\]\.$"):
        phrasings_for(REQUEST, exclude="a")
    with pytest.raises(TypeError, match=r"^`case` must be an EditCase, but got EditRequest: "):
        evaluation_prompts(REQUEST)  # type: ignore[arg-type]


def test_what_an_evaluation_asks_under_an_alias_is_left_out() -> None:
    named = replace(REQUEST, aliases=("Annie",))
    prompt = "A dog barked. The  birthplace of annie is"
    assert phrasings_for(named, exclude=[prompt]) == tuple(t for t in BANK if t != "The birthplace of {} is")
    assert phrasings_for(REQUEST, exclude=[prompt]) == BANK


@pytest.mark.parametrize(
    "prompt",
    [
        "The country to which the birthplace of Ann Lee belongs is",
        "A dog barked. The Country to which  the birthplace of Ann Lee belongs is",
        "the country to which the birthplace of annie belongs is ",
    ],
)
def test_an_implication_that_an_evaluation_asks_is_left_out(prompt: str) -> None:
    named = replace(REQUEST, aliases=("Annie",))
    assert IMPLIED[0] == ("The country to which the birthplace of {} belongs is",)
    assert implications_for(named, exclude=[prompt]) == IMPLIED[1:]
    assert implications_for(named, exclude=[f"{prompt} not", "belongs is"]) == IMPLIED
    probe = Probe(prompt=prompt, answers=("Norway",))
    (rich,) = with_implications([EditCase(request=named, compositionality_1=(probe,))])
    assert rich.request.implications == IMPLIED[1:]


def test_an_edit_keeps_its_own_implications() -> None:
    own = (("The mayor of the city where {} was born is",),)
    assert implications_for(replace(REQUEST, implications=own), exclude=()) == own
    assert implications_for(replace(REQUEST, relation="P0"), exclude=()) == ()
    case = EditCase(request=replace(REQUEST, implications=own))
    assert with_implications([case]) == [case]


@pytest.mark.parametrize("prompt", ["The birthplace of Tom Roe is", "The birthplace of Ann Lee is not", "birthplace"])
def test_other_questions_leave_nothing_out(prompt: str) -> None:
    assert phrasings_for(REQUEST, exclude=[prompt]) == BANK


def samples(annotation: Any, text: str) -> Iterator[Any]:
    """Values of a type of a field, each with the text in another of the places for one, others elsewhere."""
    if annotation is str:
        yield text
    elif get_origin(annotation) is tuple:
        yield from ((value,) for value in samples(get_args(annotation)[0], text))
    elif get_origin(annotation) is Literal:
        yield get_args(annotation)[0]
    elif is_dataclass(annotation):
        kinds = get_type_hints(annotation)
        plain = {name: next(samples(kind, name)) for name, kind in kinds.items()}
        for name, kind in kinds.items():
            yield from (annotation(**plain | {name: value}) for value in samples(kind, text))  # type: ignore[operator]
    else:
        yield False


def asks(value: object, text: str) -> bool:
    """Whether a text stands in a value, save among answers; the slow way."""
    if isinstance(value, tuple):
        return any(asks(part, text) for part in value)
    if is_dataclass(value):
        kept = {field.name for field in fields(value)} - {"answers", "condition_answers", "new", "true"}
        return any(asks(getattr(value, name), text) for name in kept)
    return value == text


@dataclass(frozen=True, kw_only=True)
class Tale:
    """A part of a case that nobody has thought of."""

    heading: str
    chapters: tuple[tuple[Query, ...], ...]


@dataclass(frozen=True, kw_only=True)
class NewCase(EditCase):
    """A case with fields that nobody has thought of."""

    riddle: str = ""
    riddles: tuple[str, ...] = ()
    tales: tuple[Tale, ...] = ()


@pytest.mark.parametrize(("kind", "places"), [(EditCase, 18), (TranslatedCase, 19), (NewCase, 22)])
def test_every_field_of_a_case_is_looked_at(kind: type[EditCase], places: int) -> None:
    prompt = BANK[0].replace("{}", REQUEST.subject)
    found = [
        (name, value)
        for name, annotation in get_type_hints(kind).items()
        if name != "request"
        for value in samples(annotation, prompt)
        if asks(value, prompt)
    ]
    assert {name for name, _ in found} == {field.name for field in fields(kind)} - {"request"}
    assert len(found) == places
    for name, value in found:
        (case,) = with_phrasings([kind(request=REQUEST, **{name: value})])
        assert case.request.phrasings == BANK[1:], (name, value)


def test_answers_are_not_asked() -> None:
    probe = Probe(prompt="p", answers=("a",), condition_prompt="q", condition_answers=("b",))
    test = RippleTest(axis="Forgetfulness", queries=(Query(prompt="r", answers=(("c",),)),))
    case = EditCase(request=REQUEST, generation_prompts=("s", "p"), locality=(probe,), ripple=(test,))
    assert evaluation_prompts(case) == ("s", "p", "q", "r")
    german = Translation(language="de", questions=("Wo?",), new="neu", true="alt")
    assert evaluation_prompts(TranslatedCase(request=REQUEST, translations=(german,))) == ("Wo?",)


def test_only_phrasings_or_implications_of_a_case_change() -> None:
    case = EditCase(request=REQUEST, paraphrase_prompts=("Ann Lee came from",))
    (worded,), (implied,) = with_phrasings([case]), with_implications([case])
    assert worded == replace(case, request=replace(REQUEST, phrasings=BANK))
    assert implied == replace(case, request=replace(REQUEST, implications=IMPLIED))
    assert with_phrasings([worded]) == [worded]
    assert with_implications([implied]) == [implied]


@pytest.mark.parametrize(
    ("name", "least", "middle", "implied"),
    [("counterfact", 7, 8, 662), ("rippleedits", 6, 7, 415), ("knowedit", 6, 7, 415), ("zsre", 0, 0, 0)],
)
def test_no_real_edit_is_fitted_on_what_its_evaluation_asks(
    real_cases: dict[str, list[EditCase]], name: str, least: int, middle: int, implied: int
) -> None:
    rich = with_implications(with_phrasings(real_cases[name]))
    assert leaks(rich) == []
    counts = [len(case.request.phrasings) for case in rich]
    assert (min(counts), median(counts)) == (least, middle)
    assert sum(bool(case.request.implications) for case in rich) == implied


def test_a_leak_would_be_seen(counterfacts: Sequence[EditCase]) -> None:
    leaky = []
    for case in counterfacts:
        prompt = case.paraphrase_prompts[0].split(". ")[-1]
        if prompt.count(case.request.subject) == 1:
            template = prompt.replace(case.request.subject, "{}")
            leaky.append(replace(case, request=replace(case.request, phrasings=(template,))))
    assert len(leaks(leaky)) >= len(leaky) > 500
    assert leaks(with_implications(with_phrasings(leaky))) == []


def test_a_leak_of_an_implication_would_be_seen(ripples: Sequence[EditCase]) -> None:
    leaky = []
    for case in ripples:
        prompts = [probe.prompt for probe in case.compositionality_1 if probe.prompt.count(case.request.subject) == 1]
        if prompts:
            template = prompts[0].replace(case.request.subject, "{}")
            leaky.append(replace(case, request=replace(case.request, implications=((template,),))))
    assert len(leaks(leaky)) >= len(leaky) > 150


@pytest.mark.parametrize("split", ["dev", "test"])
def test_no_lab_edit_is_fitted_on_what_its_evaluation_asks(split: str) -> None:
    from mega_pl.lab.data import LabDataModule  # a room above

    data = LabDataModule(split=split)  # type: ignore[arg-type]
    data.setup("fit")
    rich = with_implications(with_phrasings(data.cases))
    assert leaks(rich) == []
    assert rich != data.cases
    asked = {case.request.edit_id: set(map(plain, evaluation_prompts(case))) for case in data.cases}
    for case in data.cases:  # as the lab writes them
        own = {plain(template.replace("{}", case.request.subject)) for template in case.request.phrasings}
        assert own.isdisjoint(asked[case.request.edit_id])
