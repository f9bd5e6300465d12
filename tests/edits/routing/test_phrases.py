"""Noun phrases: which are found, whom the bare model names, and what is asked of it."""

from dataclasses import replace

import pytest
import torch

from mega_pl.backbone import Site
from mega_pl.edits import EditBank
from mega_pl.edits.routing import phrases
from mega_pl.edits.routing.question import MASK
from mega_pl.functional import mean_shift, stack
from tests.edits.routing.conftest import BORN, REQUESTS, fired, request, routes


def forgetful(router):
    """The router whose model has not been asked for anybody yet."""
    return replace(router, phrases=replace(router.phrases, answers={}))


def named(router, backbone, sentences, relations=None):
    """The readings of sentences."""
    every = set(range(len(router.scopes.types)))
    return router.phrases.questions(backbone, sentences, every if relations is None else relations, router.finder)


def test_a_noun_phrase_is_read_as_the_subject_that_it_names(router, lab_backbone, monkeypatch):
    prompts, marie = [], " Marie Curie. He"

    def says(_, batch, tokens):
        prompts.extend(batch)
        return [marie if "Pierre Curie" in prompt else " nobody" for prompt in batch]

    monkeypatch.setattr(phrases, "continued", says)
    fresh = forgetful(router)
    sentences = [
        "The birthplace of the spouse of Pierre Curie is",
        "The birthplace of the wife of Tom Roe is",
        "",
        "The spouse of them is",
    ]
    (reading,), *others = named(fresh, lab_backbone, sentences)
    assert others == [[], [], []]
    assert f"The birthplace of {MASK} is" in reading.forms
    assert reading.words == "the spouse of Pierre Curie"
    assert reading.edits == (0, 1)  # both are about Marie Curie
    (spouse,) = fresh.scopes.matcher.relations_of_noun("spouse")
    wordings = fresh.phrases.phrasings[spouse]
    assert len(wordings) == phrases.PHRASINGS
    assert prompts == [t.replace("{}", name) for name in ("Pierre Curie", "Tom Roe") for t in wordings]
    assert fresh.phrases.answers == {
        (spouse, "Pierre Curie"): [marie] * len(wordings),
        (spouse, "Tom Roe"): [" nobody"] * len(wordings),
    }
    assert named(fresh, lab_backbone, sentences, relations=set()) == [[], [], [], []]
    assert len(prompts) == 2 * len(wordings)


@pytest.mark.parametrize(
    ("sentence", "name"),
    [
        ("the wife of Ludwig van Beethoven lives in", "Ludwig van Beethoven"),
        ("The Spouse of J. R. R. Tolkien was born in", "J. R. R. Tolkien"),
        ("Where lives the husband or wife of Simone de Beauvoir?", "Simone de Beauvoir"),
        ("The capital of the country that includes Kyoto is", "Kyoto"),
        ("The name of the wife of Ludwig van Beethoven is", None),  # asks who she is, and nothing of her
        ("Who is the wife of Ludwig van Beethoven?", None),
        ("The wife of the man lives in", None),
        ("Ann is a housewife of Rome", None),
    ],
)
def test_names_after_nouns_are_found(router, lab_backbone, monkeypatch, sentence, name):
    monkeypatch.setattr(phrases, "continued", lambda _, batch, tokens: ["" for _ in batch])
    fresh = forgetful(router)
    assert named(fresh, lab_backbone, [sentence]) == [[]]
    assert {asked for _, asked in fresh.phrases.answers} == ({name} if name else set())


def test_the_second_wording_counts_where_the_first_names_nobody(router, lab_backbone, monkeypatch):
    monkeypatch.setattr(
        phrases, "continued", lambda _, batch, tokens: [[" him", " Marie Curie"][i % 2] for i in range(len(batch))]
    )
    (found,) = named(forgetful(router), lab_backbone, ["The mother tongue of the wife of Pierre Curie is"])
    assert [question.words for question in found] == ["the wife of Pierre Curie"]


THROUGH = {
    "The birthplace of the spouse of Pierre Curie is": "born",
    "The spouse of Pierre Curie was born in": "born",
    "Where was the spouse of Pierre Curie born?": "born",
    "The mother tongue of the wife of Pierre Curie is": "tongue",
}


def test_the_model_says_whom_a_noun_phrase_names(router, lab_backbone):
    found = routes(router, lab_backbone, list(THROUGH))
    assert [router.requests[route.edit].edit_id for route in found] == list(THROUGH.values())
    assert all("Pierre Curie" in route.subject for route in found)
    foreign = [
        "The birthplace of the spouse of Albert Einstein is",
        "The occupation of the spouse of Pierre Curie is",
        "The birthplace of the capital of Pierre Curie is",
    ]
    assert fired(router, lab_backbone, foreign) == [None] * 3
    blind = replace(router, config=replace(router.config, noun_phrases=False))
    assert fired(blind, lab_backbone, list(THROUGH)) == [None] * 4


@pytest.mark.parametrize("side", ["left", "right"])
def test_noun_phrases_of_a_batch_are_read_as_alone(router, lab_backbone, side):
    texts = ["The capital of France is", "Nobody asks", *THROUGH, "Marie Curie was born in"]
    together = routes(router, lab_backbone, texts, side=side)
    for text, route in zip(texts, together, strict=True):
        (alone,) = routes(router, lab_backbone, [text])
        assert (route.edit, route.subject) == (alone.edit, alone.subject)
        assert dict(route.evidence) == pytest.approx(dict(alone.evidence), abs=1e-3)


def test_the_model_is_asked_once_about_a_noun_phrase(router, lab_backbone, monkeypatch):
    fresh, calls = forgetful(router), []

    def watched(backbone, prompts, tokens):
        calls.append(list(prompts))
        return [" Marie Curie." for _ in prompts]

    monkeypatch.setattr(phrases, "continued", watched)
    text = "The birthplace of the spouse of Pierre Curie is"
    for _ in range(2):
        assert fired(fresh, lab_backbone, [text, text]) == ["born", "born"]
    asked = [prompt for call in calls for prompt in call]
    assert len(asked) == len(set(asked)) > 0
    assert all("Pierre Curie" in prompt for prompt in asked)


def test_the_model_is_not_asked_for_what_no_edit_is_about(router, lab_backbone, monkeypatch):
    """A spouse is a person, and the edits that are left are about countries."""
    calls: list[str] = []

    def silent(backbone, prompts, tokens):
        calls.extend(prompts)
        return ["" for _ in prompts]

    monkeypatch.setattr(phrases, "continued", silent)
    countries = forgetful(router.remove(3).remove(0).remove(0))
    text = ["The birthplace of the spouse of Pierre Curie is"]
    assert fired(countries, lab_backbone, text) == [None]
    assert calls == []
    assert fired(forgetful(router), lab_backbone, text) == [None]
    assert calls  # control


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        (" Marie Curie.", "born"),
        ("\nthe Marie Curie of", "born"),
        (" MARIA SKLODOWSKA, a", "born"),
        (" not Marie Curie", None),
        (" Marie Curies", None),
        (" Albert Einstein. Marie Curie", None),
        ("", None),
    ],
)
def test_an_answer_names_a_subject_that_it_begins_with(router, lab_backbone, monkeypatch, answer, name):
    monkeypatch.setattr(phrases, "continued", lambda _, prompts, __: [answer for _ in prompts])
    fresh = forgetful(router)
    assert fired(fresh, lab_backbone, ["The birthplace of the spouse of Pierre Curie is"]) == [name]


def test_a_noun_phrase_is_resolved_anew_for_other_edits(router, lab_backbone):
    """What the model has answered is kept, and not whom of the edits it named."""
    text = ["The birthplace of the spouse of Pierre Curie is"]
    einstein = request("einstein", "{} was born in", "Albert Einstein", relation="P19")
    both = forgetful(router).add(lab_backbone, [einstein])
    assert fired(both, lab_backbone, text) == ["born"]
    assert fired(both.remove(0).remove(0), lab_backbone, text) == [None]
    other = forgetful(router.remove(0).remove(0)).add(lab_backbone, [einstein])
    assert fired(other, lab_backbone, text) == [None]
    assert fired(other.add(lab_backbone, [BORN]), lab_backbone, text) == ["born"]


def hook_count(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_the_model_is_asked_as_it_was_while_edits_are_in_force(router, lab_backbone):
    """The question about the noun phrase is neither routed nor steered, and leaves no hooks."""
    draw = torch.Generator().manual_seed(0)
    maps = stack(
        [
            mean_shift(torch.zeros(2, lab_backbone.width), 50 * torch.randn(2, lab_backbone.width, generator=draw))
            for _ in REQUESTS
        ]
    ).cast(torch.float32)
    origin = {"name": lab_backbone.name, "revision": lab_backbone.revision, **lab_backbone.fingerprint}
    bank = EditBank(REQUESTS, {Site(2, "resid_mid"): maps}, forgetful(router), 1.0, origin, {})
    texts = ["The capital of Spain is", *THROUGH]
    encoded = lab_backbone.encode(texts)
    bare, count = lab_backbone.last_logits(encoded), hook_count(lab_backbone.model)
    with bank.apply(lab_backbone) as use:
        armed = hook_count(lab_backbone.model)
        logits = lab_backbone.last_logits(encoded)
        assert hook_count(lab_backbone.model) == armed
        assert use.fired == [None, *THROUGH.values()]
        again = lab_backbone.last_logits(encoded)
    assert torch.equal(again, logits)
    assert torch.equal(logits[0], bare[0])
    assert not torch.isclose(logits[1:], bare[1:]).all(1).any()
    assert hook_count(lab_backbone.model) == count
