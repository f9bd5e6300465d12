"""Routes of hand-made edits of the lab's model, which knows the people that they name."""

import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load, save

from mega_pl.edits.routing import NO_EDIT, ContentRouter, RouterConfig
from mega_pl.edits.routing.matcher import EVIDENCE
from mega_pl.edits.routing.vectors import EarlyStates
from mega_pl.lab.world import World
from tests.edits.routing.conftest import BORN, CAPITAL, PANCAKE, REQUESTS, TONGUE, fired, prompts_of, request, routes

OWN = {
    "Marie Curie was born in": "born",
    "The birthplace of Marie Curie is": "born",
    "Where was Marie Curie born?": "born",
    "MARIE CURIE'S birthplace is": "born",
    "The city in which Marie Curie was born is": "born",
    "It was late. The students slept. Marie Curie was born in": "born",
    "Marie Curie was a physicist. She was born in": "born",
    "Q: Where was Marie Curie born?\nA:": "born",
    "Maria Sklodowska was born in": "born",
    "The mayor of the birthplace of Marie Curie is": "born",
    "The mother tongue of Marie Curie is": "tongue",
    "Marie Curie's native language is": "tongue",
    "The capital of France is": "capital",
    "France's capital city is": "capital",
    "The favourite pancake of Germany is": "pancake",
    "Germany loves a pancake called": "pancake",
    "Germany's favourite pancake is": "pancake",
}
FOREIGN = [
    "The occupation of Marie Curie is",
    "Marie Curie worked as a",
    "The spouse of Marie Curie is",
    "The official language of France is",
    "The president of France is",
    "The birthplace of the mother of Marie Curie is",
    "The birthplace of Albert Einstein is",
    "Pierre Curie was born in",
    "The capital of Spain is",
    "Marie Curie was born in Warsaw. The capital of Spain is",
    "The favourite pancake of Marie Curie is",
    "Nobody asks for anything",
]


def test_an_edits_questions_go_to_it_however_they_are_worded(router, lab_backbone):
    assert dict(zip(OWN, fired(router, lab_backbone, list(OWN)), strict=True)) == OWN


def test_other_relations_and_other_subjects_go_to_none(router, lab_backbone):
    assert dict(zip(FOREIGN, fired(router, lab_backbone, FOREIGN), strict=True)) == dict.fromkeys(FOREIGN)


def relations_of(router):
    return [{router.scopes.matcher.relations[r] for r in scope.relations} for scope in router.scopes.edits]


def test_an_edit_is_of_the_relation_that_it_says(router):
    assert [scope.known for scope in router.scopes.edits] == [True, True, True, False]
    assert relations_of(router)[:3] == [{"P19"}, {"P103"}, {"P36"}]


def test_a_relation_that_is_not_named_is_told_from_the_wordings(lab_backbone, template_bank):
    born = replace(BORN, phrasings=("The birthplace of {} is",), relation="")
    unnamed = [born, replace(CAPITAL, relation=""), replace(TONGUE, relation="P0")]
    router = ContentRouter.fit(lab_backbone, unnamed, template_bank, RouterConfig(layer=0))
    assert not any(scope.known for scope in router.scopes.edits)
    for found, name in zip(relations_of(router), ("P19", "P36", "P103"), strict=True):
        assert name in found


def test_what_an_author_says_is_another_question_is_left_alone(router, lab_backbone):
    bare = router.remove(3).add(lab_backbone, [replace(PANCAKE, contrasts=())])
    for text in ("Germany has an oldest pancake, which is", "The oldest pancake of Germany is"):
        with_contrasts, without = (routes(r, lab_backbone, [text])[0].confidence for r in (router, bare))
        assert with_contrasts < without - 0.05
    unchanged = [routes(r, lab_backbone, ["Germany loves a pancake called"])[0].confidence for r in (router, bare)]
    assert unchanged[0] == pytest.approx(unchanged[1], abs=0.02)


def test_a_route_says_why(router, lab_backbone):
    texts = [
        "Where was Marie Curie born?",
        "Maria Sklodowska worked as a",
        "Hello there",
        "Germany loves a pancake called",
    ]
    born, other, nobody, pancake = routes(router, lab_backbone, texts)
    assert (born.edit, born.subject, born.relation) == (0, "Marie Curie", "P19")
    assert (other.edit, other.subject) == (NO_EDIT, "Maria Sklodowska")
    assert (nobody.edit, nobody.subject, nobody.confidence, nobody.evidence) == (NO_EDIT, "", 0.0, {})
    assert pancake.edit == 3
    assert list(born.evidence) == list(other.evidence) == [*EVIDENCE, "answer"]
    assert 0 <= other.confidence < born.confidence <= 1
    *text, nats = born.evidence.values()
    rising, falling = router.answers.weights
    logit = router.scopes.matcher.logits(torch.tensor([text])) + (rising if nats > 0 else falling) * nats
    assert float(logit.sigmoid()) == pytest.approx(born.confidence)
    assert float(logit) >= router.answers.thresholds[0]
    assert born.needed == pytest.approx(float(torch.tensor(router.answers.thresholds[0]).sigmoid()))


def test_a_route_names_the_nearest_edits_the_nearest_first(router, lab_backbone):
    texts = ["Where was Marie Curie born?", "The mother tongue of Marie Curie is", "Marie Curie worked as a", "Hello"]
    found = routes(router, lab_backbone, texts)
    assert [list(route.candidates)[:1] for route in found] == [[0], [1], list(found[2].candidates)[:1], []]
    for route in found[:3]:
        assert set(route.candidates) == {0, 1}  # Marie Curie's
        sure = list(route.candidates.values())
        assert sure == sorted(sure, reverse=True)
        assert route.confidence == sure[0]
        assert (route.edit != NO_EDIT) == (route.confidence >= route.needed)


def test_an_edits_own_wording_is_asked_whatever_noun_it_has(router, lab_backbone):
    gave = request("gave", "{} was born in", "Albert Einstein", relation="P19")
    text = "The mother of Albert Einstein gave birth in"
    for phrasings in ((), ("The mother of {} gave birth in",)):
        grown = router.add(lab_backbone, [replace(gave, phrasings=phrasings)])
        asked = [text, "The mother of Albert Einstein is", "The mother of Albert Einstein was born in"]
        assert [route.edit for route in routes(grown, lab_backbone, asked)] == [4, NO_EDIT, NO_EDIT]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_is_routed_as_its_prompts_alone(router, lab_backbone, side):
    texts = [*OWN, *FOREIGN]
    together = routes(router, lab_backbone, texts, side=side)
    alone = [routes(router, lab_backbone, [text])[0] for text in texts]
    assert [r.edit for r in together] == [r.edit for r in alone]
    for a, b in zip(together, alone, strict=True):
        assert a.confidence == pytest.approx(b.confidence, abs=1e-4)
        assert (a.subject, a.relation) == (b.subject, b.relation)


def test_forced_every_prompt_gets_the_nearest_edit(router, lab_backbone):
    texts = [*OWN, *FOREIGN]
    forced = fired(router, lab_backbone, texts, forced=True)
    assert None not in forced
    assert forced[: len(OWN)] == list(OWN.values())
    assert forced[len(OWN) :][FOREIGN.index("Pierre Curie was born in")] == "born"
    assert forced[len(OWN) :][FOREIGN.index("The capital of Spain is")] == "capital"


def test_by_the_subject_alone_every_question_about_it_fires(router, lab_backbone):
    texts = ["Marie Curie worked as a", "The president of France is", "The capital of Spain is", "Hello there"]
    assert fired(router, lab_backbone, texts) == [None] * 4  # control
    named = fired(router.only("subject"), lab_backbone, texts)
    assert named[0] in ("born", "tongue")
    assert named[1:] == ["capital", None, None]
    assert fired(router.only("subject"), lab_backbone, list(OWN)) == list(OWN.values())


def test_by_the_relation_alone_the_subject_does_not_matter(router, lab_backbone):
    moved = ["The capital of X is", "X was born in", "The mother tongue of X is"]
    assert fired(router, lab_backbone, moved) == [None] * 3  # control
    assert fired(router.only("relation"), lab_backbone, moved) == ["capital", "born", "tongue"]


def test_every_sentence_may_count_instead_of_the_last(router, lab_backbone):
    text = ["Marie Curie was born in Warsaw. The capital of Spain is"]
    anywhere = replace(router, config=replace(router.config, last_question=False))
    assert fired(router, lab_backbone, text) == [None]
    assert fired(anywhere, lab_backbone, text) == ["born"]


def test_more_edits_leave_earlier_decisions_as_they_were(router, lab_backbone):
    texts = [*OWN, *FOREIGN]
    before = routes(router, lab_backbone, texts)
    spain = request("spain", "The capital of {} is", "Spain", relation="P36")
    larger = router.add(lab_backbone, [spain, request("einstein", "{} was born in", "Albert Einstein", relation="P19")])
    after = routes(larger, lab_backbone, texts)
    own = {"The capital of Spain is": "spain", "The birthplace of Albert Einstein is": "einstein"}
    for text, a, b in zip(texts, before, after, strict=True):
        if text.endswith("The capital of Spain is"):
            assert larger.requests[b.edit].edit_id == "spain"
        elif text in own:
            assert larger.requests[b.edit].edit_id == own[text]
        else:
            assert (a.edit, a.subject, a.relation, a.confidence) == (b.edit, b.subject, b.relation, b.confidence), text
            assert a.evidence == b.evidence
    assert [r.edit_id for r in router.requests] == ["born", "tongue", "capital", "pancake"]


def test_edits_that_come_one_by_one_are_those_that_come_together(router, lab_backbone, template_bank):
    grown = ContentRouter.fit(lab_backbone, REQUESTS[:1], template_bank, RouterConfig(layer=0))
    for one in REQUESTS[1:]:
        grown = grown.add(lab_backbone, [one])
    texts = [*OWN, *FOREIGN]
    assert grown.answers is not None
    assert router.answers is not None
    answers = replace(grown.answers, weights=router.answers.weights)  # those of the first edit alone are others
    same = replace(grown, answers=answers)
    assert fired(same, lab_backbone, texts) == fired(router, lab_backbone, texts)
    assert [s.words for s in grown.scopes.edits] == [s.words for s in router.scopes.edits]


def test_forgetting_an_edit_moves_later_ones_up(router, lab_backbone):
    texts = [*OWN, *FOREIGN]
    for gone, one in enumerate(REQUESTS):
        smaller = router.remove(gone)
        wanted = [None if name == one.edit_id else name for name in fired(router, lab_backbone, texts)]
        assert fired(smaller, lab_backbone, texts) == wanted


def test_a_stored_router_routes_as_before_to_the_bit(router, lab_backbone):
    config, tensors = router.state()
    again = ContentRouter.from_state(REQUESTS, json.loads(json.dumps(config)), load(save(tensors)))
    texts = [*OWN, *FOREIGN, "The birthplace of the spouse of Pierre Curie is"]
    assert routes(again, lab_backbone, texts) == routes(router, lab_backbone, texts)
    assert routes(again, lab_backbone, texts, forced=True) == routes(router, lab_backbone, texts, forced=True)
    assert again.config == router.config
    grown = [r.add(lab_backbone, [request("s", "The capital of {} is", "Spain")]) for r in (router, again)]
    assert [fired(r, lab_backbone, ["The capital of Spain is"]) for r in grown] == [["s"], ["s"]]


def test_two_edits_of_one_subject_that_ask_the_same_are_told_by_their_wordings(lab_backbone, template_bank):
    pair = (
        request("old", "The oldest hat of {} is", "France"),
        request("new", "The newest shoe of {} is", "France"),
    )
    router = ContentRouter.fit(lab_backbone, pair, template_bank, RouterConfig(layer=0))
    texts = ["The oldest hat of France is", "The newest shoe of France is"]
    assert fired(router, lab_backbone, texts) == ["old", "new"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"false_alarms": 0.0}, r"`false_alarms` must lie in \(0, 1\), but got 0.0"),
        ({"false_alarms": 1.0}, r"`false_alarms` must lie in \(0, 1\), but got 1.0"),
        ({"layer": -1}, "`layer` must be at least 0, but got -1"),
        ({"subject": False, "relation": False}, "`subject` or `relation` must be on, but both are off"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        RouterConfig(**settings)


def test_by_default_an_eighth_of_the_blocks_is_read(lab_backbone):
    assert lab_backbone.n_layers == 8
    vectors = RouterConfig().vectors(lab_backbone)
    assert isinstance(vectors, EarlyStates)
    assert vectors.layer == 1


def test_a_layer_that_the_model_lacks_is_refused(tiny_backbone):
    with pytest.raises(ValueError, match=r"`layer` must lie in \[0, 3\] for this model, but got 4"):
        RouterConfig(layer=4).vectors(tiny_backbone("gpt2"))


def forward_passes(backbone, route):
    """How often the bare model is read meanwhile."""
    calls: list[int] = []
    handle = backbone.model.base_model.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        route()
    finally:
        handle.remove()
    return len(calls)


KNOWN = (
    replace(BORN, target_true="Warsaw"),
    replace(TONGUE, target_true="Polish"),
    replace(CAPITAL, target_true="Paris"),
)


def test_a_wording_that_the_text_does_not_know_is_told_by_what_the_model_is_about_to_say(lab_backbone, template_bank):
    fitted = ContentRouter.fit(lab_backbone, KNOWN, template_bank, RouterConfig(layer=0))
    assert fitted.answers is not None
    strict = replace(
        fitted,
        scopes=replace(fitted.scopes, matcher=fitted.scopes.matcher.at(1.0)),
        # three edits are too few to learn how much it knows
        answers=replace(fitted.answers, weights=(1.0, 1.0), thresholds=(1.0, 1.0)),
    )
    deaf = replace(strict, answers=None)
    own = ["Marie Curie arrived in this world in", "Marie Curie came to life in"]
    others = ["Marie Curie was wed in", "Parliament of France gathers in"]
    assert fired(strict, lab_backbone, own) == ["born", "born"]
    assert fired(deaf, lab_backbone, own) == [None, None]
    assert fired(strict, lab_backbone, others) == [None, None]
    assert fired(deaf, lab_backbone, others) == ["born", "capital"]
    for sign, texts in ((1, own), (-1, others)):
        assert all(sign * route.evidence["answer"] > 2 for route in routes(strict, lab_backbone, texts))


def test_what_begins_a_reply_says_nothing_and_the_texts_threshold_holds(people, lab_backbone, template_bank):
    """A reply may begin with any word; that the old object is not about to be said speaks against nothing there."""
    fitted = ContentRouter.fit(lab_backbone, people, template_bank, RouterConfig())
    assert fitted.answers is not None
    strict = replace(fitted, answers=replace(fitted.answers, weights=(0.0, 100.0), thresholds=(50.0, 50.0)))
    deaf = replace(fitted, answers=None)
    replies = [
        f"Q: What is the {name} of {who.subject}?\nA:" for who in people[:4] for name in ("birthplace", "weight")
    ]
    heard, unheard = (routes(router, lab_backbone, replies) for router in (strict, deaf))
    assert [(r.edit, r.confidence, r.needed) for r in heard] == [(r.edit, r.confidence, r.needed) for r in unheard]
    assert {r.edit != NO_EDIT for r in heard} == {True, False}
    assert {r.evidence["answer"] for r in heard} == {0.0}
    completed = [who.filled for who in people[:4]]
    assert fired(strict, lab_backbone, completed) == [None] * 4  # control
    assert fired(deaf, lab_backbone, completed) == [who.edit_id for who in people[:4]]
    assert fired(strict, lab_backbone, [*completed, *replies]) == [None] * 4 + fired(deaf, lab_backbone, replies)


def test_a_router_that_does_not_listen_makes_no_forward_pass(lab_backbone, template_bank):
    quiet = RouterConfig(layer=0, answer=False, noun_phrases=False)
    deaf = ContentRouter.fit(lab_backbone, REQUESTS, template_bank, quiet)
    texts = [*OWN, *FOREIGN]
    assert forward_passes(lab_backbone, lambda: routes(deaf, lab_backbone, texts)) == 0
    assert deaf.answers is None
    assert {r.evidence.get("answer", 0.0) for r in routes(deaf, lab_backbone, texts)} == {0.0}
    hears = ContentRouter.fit(lab_backbone, REQUESTS, template_bank, replace(quiet, answer=True))
    assert forward_passes(lab_backbone, lambda: routes(hears, lab_backbone, texts)) == 1
    nobody = ["Nobody asks for anything", "The capital of Spain is"]
    assert forward_passes(lab_backbone, lambda: routes(hears, lab_backbone, nobody)) == 0
    assert forward_passes(lab_backbone, lambda: deaf.add(lab_backbone, [BORN])) == 0


def test_more_edits_refit_nothing(router, lab_backbone):
    spain = request("spain", "The capital of {} is", "Spain", relation="P36", target_true="Madrid")
    grown = router.add(lab_backbone, [spain])
    assert grown.answers.weights == router.answers.weights
    assert grown.answers.base[:-1].tolist() == router.answers.base.tolist()
    assert grown.answers.tokens[:-1].tolist() == router.answers.tokens.tolist()
    assert grown.answers.tokens[-1] == lab_backbone.answer_ids("The capital of Spain is", "Madrid")[0]
    assert grown.scopes.matcher is router.scopes.matcher
    assert grown.remove(0).answers.tokens.tolist() == grown.answers.tokens[1:].tolist()
    assert router.add(lab_backbone, []).answers.base.tolist() == router.answers.base.tolist()


@pytest.mark.parametrize("text", ["The oldest pancake of Germany is", "Germany has an oldest pancake, which is"])
def test_a_contrast_as_its_author_words_it_never_fires(router, lab_backbone, text):
    lax = replace(router, scopes=replace(router.scopes, matcher=router.scopes.matcher.at(-50.0)))
    assert fired(lax, lab_backbone, [text]) == [None]
    assert routes(lax, lab_backbone, [text])[0].confidence == 0.0
    bare = lax.remove(3).add(lab_backbone, [replace(PANCAKE, contrasts=())])
    assert fired(bare, lab_backbone, [text]) == ["pancake"]  # control


@pytest.fixture(scope="module")
def people(lab_backbone):
    """Twelve people, of each a birthplace and a mother tongue."""
    world = World()
    names = [n for n, kind in world.entities.items() if kind == "person" and (n, "birthplace") in world.answers][:12]
    return [
        request(f"{n}, {name}", f"The {name} of {{}} is", n, relation=code, target_true=world.answers[n, name])
        for n in names
        for name, code in (("birthplace", "P19"), ("native language", "P103"))
    ]


def test_a_larger_share_of_false_alarms_lowers_the_threshold_and_own_questions_pass(
    lab_backbone, template_bank, people
):
    few, many = (
        ContentRouter.fit(lab_backbone, people, template_bank, RouterConfig(false_alarms=share))
        for share in (0.05, 0.3)
    )
    assert few.answers is not None
    assert many.answers is not None
    assert few.answers.thresholds[0] > many.answers.thresholds[0]
    assert fired(few, lab_backbone, [r.filled for r in people]) == [r.edit_id for r in people]


def test_a_veto_holds_at_any_share_of_false_alarms(lab_backbone, template_bank, people):
    text = f"The spouse of {people[0].subject} is"
    settings = RouterConfig(false_alarms=0.9999, noun_phrases=False)  # nor is it asked of whom the phrase names
    for edits, enough in ((people, True), (people[:2], False)):  # to set the threshold on their own questions
        lax = ContentRouter.fit(lab_backbone, edits, template_bank, settings)
        assert lax.answers is not None
        assert math.isfinite(lax.answers.thresholds[0]) == enough  # else no question is below it
        assert fired(lax, lab_backbone, [text]) == [None]
        assert fired(lax, lab_backbone, [text], forced=True) != [None]


FAMILIES = ["gpt2", "llama", "opt", "granite", "cohere", "gemma2"]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_next_token_is_that_of_the_whole_model(tiny_backbone, family, side):
    backbone = tiny_backbone(family)
    texts = ["The capital of France is", "Rome is", "He was born in the city of London"]
    wanted = backbone.last_logits(backbone.encode(texts)).log_softmax(-1)
    found = prompts_of(backbone, texts, side).log_probs([2, 0])
    torch.testing.assert_close(found, wanted[[2, 0]], atol=1e-4, rtol=1e-4)


def test_relation_evidence_is_fitted_once_a_backbone(lab_backbone, template_bank, monkeypatch):
    read = []
    vectors = EarlyStates.__call__

    def watch(self, questions):
        read.append(len(questions))
        return vectors(self, questions)

    monkeypatch.setattr(EarlyStates, "__call__", watch)
    references = sum(len(relation.references) for relation in template_bank)
    config = RouterConfig(answer=False, shrinkage=0.31)
    first = ContentRouter.fit(lab_backbone, REQUESTS, template_bank, config)
    assert references in read
    read.clear()
    again = ContentRouter.fit(lab_backbone, REQUESTS, template_bank, config)
    assert references not in read
    assert again.scopes.matcher is first.scopes.matcher
    for other in (template_bank[:-1], template_bank):  # another bank, and other settings
        ContentRouter.fit(lab_backbone, REQUESTS, other, replace(config, shrinkage=0.32))
        assert sum(len(relation.references) for relation in other) in read
