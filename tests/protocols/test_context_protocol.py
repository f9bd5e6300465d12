"""What stands before a question: the tests of a case, how they are asked, and what is made of the answers."""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from mega_pl.asking import BARE, Edited
from mega_pl.backbone import Backbone
from mega_pl.edits import EditCase, EditRequest, Probe
from mega_pl.fitting.prompts import PREFIXES
from mega_pl.lab.world import World
from mega_pl.protocols import EvalRow, confidence
from mega_pl.protocols.context import (
    EXCHANGES,
    MENTIONS,
    NEUTRAL,
    PERSONAL,
    PROTOCOL,
    ContextAnswer,
    ContextRow,
    ContextTest,
    ask_context,
    ask_context_bare,
    chat_text,
    context_tests,
    with_pronoun,
)

TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</{{ m['role'] }}>\n{% endfor %}"
FACTS = {"true": "The capital of France is Paris.", "new": "The capital of France is Rome."}
PROBE = "The official language of France is"


def of(tests: tuple[ContextTest, ...], **fields: str) -> list[ContextTest]:
    return [test for test in tests if all(getattr(test, name) == value for name, value in fields.items())]


def prompts(tests: tuple[ContextTest, ...], **fields: str) -> list[str]:
    return [test.prompt for test in of(tests, **fields)]


def test_other_questions_stand_after_the_edited_fact(cases):
    neighbours = ("The capital of Spain is", "The capital of Italy is")
    tests = context_tests(replace(cases[0], neighborhood_prompts=neighbours))
    for about, questions in {"other_subject": neighbours, "same_subject": (PROBE,)}.items():
        for version, fact in FACTS.items():
            direct, neutral, chat = (
                of(tests, about=about, version=version, context=kind) for kind in ("direct", "neutral", "chat")
            )
            assert sorted(test.prompt for test in direct) == sorted(f"{fact} {question}" for question in questions)
            for test in neutral:
                between = test.prompt.removeprefix(f"{fact} ").removesuffix(f" {test.question}")
                sentences = re.findall(r"[^.]+\.", between)
                assert len(sentences) in (1, 2)
                assert {sentence.strip() for sentence in sentences} <= set(NEUTRAL)
            assert sorted(test.prompt for test in chat) == sorted(questions)
            assert {test.exchange for test in chat} == {("The capital of France is", fact.split(" is ")[1])}
            assert {test.question for test in (*direct, *neutral, *chat)} == set(questions)
            answers = {test.answer for test in (*direct, *neutral, *chat)}
            assert answers == ({"Paris"} if about == "other_subject" else {"French"})
    assert not any(test.exchange for test in tests if test.context != "chat")


def test_the_own_question_stands_after_anything(cases):
    tests = context_tests(replace(cases[0], neighborhood_prompts=("The capital of Spain is",)))
    question = "The capital of France is"
    for count, prompt in enumerate(prompts(tests, about="edit", context="neutral"), 1):
        sentences = {s.strip() for s in re.findall(r"[^.]+\.", prompt.removesuffix(question))}
        assert len(sentences) == count
        assert sentences <= set(NEUTRAL)
    assert prompts(tests, about="edit", context="fact") == [
        f"{PROBE} French. {question}",
        f"The capital of Spain is Paris. {question}",
    ]
    assert prompts(tests, about="edit", context="old_fact") == [f"The capital of France is Paris. {question}"]
    (chat,) = of(tests, about="edit", context="chat")
    assert (chat.prompt, chat.exchange in EXCHANGES) == (question, True)
    pronoun = of(tests, about="edit", context="pronoun")
    assert {test.prompt for test in pronoun} < {
        f"{m.format('France')} The capital of it is".replace("  ", " ") for m in MENTIONS
    }
    assert {test.question for test in pronoun} == {"The capital of it is"}
    assert len({test.prompt for test in pronoun}) == 3
    assert {(test.new, test.answer) for test in of(tests, about="edit")} == {(("Rome", "Roma", "City of Rome"), "Rome")}
    assert {test.subject for test in tests} == {"France"}


def test_counts_and_choices(cases):
    counts = Counter(test.about for test in context_tests(cases[0]))
    assert counts == {"other_subject": 12, "same_subject": 6, "edit": 10}
    assert Counter(test.about for test in context_tests(cases[1])) == {"other_subject": 6, "edit": 9}
    assert Counter(test.about for test in context_tests(EditCase(request=cases[0].request))) == {"edit": 8}
    assert context_tests(cases[0]) == context_tests(cases[0])
    assert context_tests(cases[0]) != context_tests(cases[0], seed=1)
    other = replace(cases[0], request=replace(cases[0].request, edit_id="other"))
    assert {test.prompt for test in context_tests(other)} != {test.prompt for test in context_tests(cases[0])}
    chosen = {test.question for seed in range(20) for test in context_tests(cases[0], seed=seed)}
    assert chosen > {*cases[0].neighborhood_prompts, PROBE}  # any of them, by the seed


def test_sentences_are_none_that_edits_are_fitted_or_judged_with():
    taken = {*PREFIXES, *confidence.NEUTRAL, *World().heldout_prefixes}
    assert len({*NEUTRAL, *taken}) == len(NEUTRAL) + len(taken)
    assert all(mention.count("{}") == 1 for mention in MENTIONS)
    assert {"P19", "P26", "P413", "P1412"} < PERSONAL
    assert not {"P17", "P30", "P36", "P37", "P50", "P131"} & PERSONAL


PRONOUNS = [
    ("{}'s capital is", "Its capital is", {"His capital is", "Her capital is"}),
    ("{} is in", "It is in", {"He is in", "She is in"}),
    ("{}, who was born in", "It, who was born in", {"He, who was born in", "She, who was born in"}),
    ("In {}, people speak", "In it, people speak", {"In him, people speak", "In her, people speak"}),
    ("The wife of {} is", "The wife of it is", {"The wife of him is", "The wife of her is"}),
    ("The wife {} loves is", "The wife it loves is", {"The wife he loves is", "The wife she loves is"}),
    ("Of all things, {}'s job is", "Of all things, its job is", {f"Of all things, {p} job is" for p in ("his", "her")}),
    ("What does {} play? A", "What does it play? A", {"What does he play? A", "What does she play? A"}),
    ("Look! {} plays", "Look! It plays", {"Look! He plays", "Look! She plays"}),
    ("The work of {}' father is", "The work of its father is", {f"The work of {p} father is" for p in ("his", "her")}),
]  # fmt: skip


@pytest.mark.parametrize(("template", "thing", "person"), PRONOUNS)
def test_pronouns(template, thing, person):
    draws = [random.Random(seed) for seed in range(20)]
    assert {with_pronoun(template, False, draw) for draw in draws} == {thing}
    assert {with_pronoun(template, True, draw) for draw in draws} == person


def test_the_relation_tells_a_person(cases):
    request = replace(cases[1].request, relation="P103")
    questions = {t.question for t in context_tests(EditCase(request=request)) if t.context == "pronoun"}
    assert len(questions) == 1
    assert questions < {"The mother tongue of him is", "The mother tongue of her is"}
    (thing,) = {t.question for t in context_tests(cases[1]) if t.context == "pronoun"}
    assert thing == "The mother tongue of it is"


@pytest.fixture
def chatting(backbone: Backbone) -> Backbone:
    backbone.tokenizer.chat_template = TEMPLATE
    return backbone


def test_a_chat_ends_with_the_question(chatting):
    text = chat_text(chatting, ("Hello.", "Good day."), "Spain is in")
    assert (
        text
        == "<user>Hello.</user>\n<assistant>Good day.</assistant>\n<user>Spain is in</user>\n<assistant>Spain is in"
    )


def test_the_first_token_of_a_chat_stands_there_once(chatting):
    tokenizer = chatting.tokenizer
    tokenizer.bos_token, tokenizer.chat_template = "<|endoftext|>", "{{ bos_token }}" + TEMPLATE
    assert chat_text(chatting, ("a", "b"), "c").startswith("<|endoftext|><user>")
    chatting.prepends_bos = True
    assert chat_text(chatting, ("a", "b"), "c").startswith("<user>")


def test_a_template_that_changes_questions_is_refused(chatting):
    chatting.tokenizer.chat_template = TEMPLATE.replace(
        "m['content']", "m['content'] | replace('is', 'was' if m['role'] == 'assistant' else 'is')"
    )
    with pytest.raises(ValueError, match="the chat template must end the last turn with 'Spain is in', but got"):
        chat_text(chatting, ("a", "b"), "Spain is in")


def test_an_answer_that_merges_with_its_prompt_is_refused(backbone, cases):
    backbone.tokenizer.add_tokens(["is English"])
    tests = context_tests(replace(cases[0], relation_specificity=(Probe(prompt=PROBE, answers=("English",)),)))
    with pytest.raises(ValueError, match="'English' merge; end the prompt at a word"):
        ask_context(backbone, BARE, tests)


class Voice(Edited):
    """Makes a backbone say what a rule tells about each text; the rule may name an edit that fires."""

    def __init__(self, backbone: Backbone, rule: Callable[[str], tuple[str, str | None]], *, routed: bool) -> None:
        self.backbone, self.rule, self.routed = backbone, rule, routed
        self.texts: list[str] = []

    @property
    def fired(self) -> list[str | None] | None:
        return [self.rule(text)[1] for text in self.texts] if self.routed else None

    def speak(self, monkeypatch: pytest.MonkeyPatch) -> Voice:
        encode = Backbone.encode

        def heard(texts, *rest):
            self.texts = list(texts)
            return encode(self.backbone, texts, *rest)

        def logits(encoded):
            answers = [self.backbone.answer_ids(text, self.rule(text)[0]) for text in self.texts]
            ids = [next(i for i in own if str(self.backbone.tokenizer.decode([i])).strip()) for own in answers]
            vocabulary = self.backbone.model.config.vocab_size
            return torch.nn.functional.one_hot(torch.tensor(ids), vocabulary).float()

        monkeypatch.setattr(self.backbone, "encode", heard)
        monkeypatch.setattr(self.backbone, "last_logits", logits)
        return self


@pytest.fixture
def judged(backbone, cases, monkeypatch):
    """`judged(rule, bare)` scores one case under voices; rules see the text that the model is given."""

    def run(rule, bare=lambda text: "Berlin", *, routed=True):
        Voice(backbone, lambda text: (bare(text), None), routed=False).speak(monkeypatch)
        before = PROTOCOL.bare(backbone, cases[:1])

        def told(text):
            edit = rule(text)
            return ("Rome" if edit else bare(text)), edit

        edited = Voice(backbone, told, routed=routed).speak(monkeypatch)
        scores = PROTOCOL.score(PROTOCOL.rows(backbone, edited, cases[:1], before))
        return {name: (score.value if score.n else None, score.n) for name, score in scores.items()}

    return run


ACTING = {"acc": 10, "acc_neutral": 3, "acc_fact": 2, "acc_old_fact": 1, "acc_chat": 1, "acc_pronoun": 3}
LEFT = {
    **{"changed": 18, "changed_other_subject": 12, "changed_same_subject": 6, "changed_direct": 6},
    **{"changed_neutral": 6, "changed_chat": 6, "changed_true": 9, "changed_new": 9, "fired": 18},
}


def last(text: str) -> str:
    """The question of a text, roughly."""
    return re.split(r"[.\n]", text)[-1]


def test_an_edit_that_never_fires(judged, chatting):
    wanted = {name: (0.0, n) for name, n in (ACTING | LEFT).items()}
    assert judged(lambda text: None) == wanted | {"stale": (0.0, 18)}


def test_an_edit_that_always_fires(judged, chatting):
    wanted = {name: (1.0, n) for name, n in (ACTING | LEFT).items()}
    assert judged(lambda text: "france") == wanted | {"stale": (0.0, 18)}
    assert judged(lambda text: "france" if "France" in text else None) == wanted | {"stale": (0.0, 18)}


def test_an_edit_that_fires_on_the_subject_in_the_question_only(judged, chatting):
    found = judged(lambda text: "france" if "France" in last(text) else None)
    assert found == {
        **{name: (1.0, n) for name, n in ACTING.items()},
        **{"acc": (0.7, 10), "acc_pronoun": (0.0, 3)},
        **{name: (1 / 3, n) for name, n in LEFT.items()},
        **{"changed_other_subject": (0.0, 12), "changed_same_subject": (1.0, 6), "stale": (0.0, 18)},
    }


def test_an_edit_that_fires_and_changes_no_answer(judged, chatting):
    found = judged(lambda text: "france", bare=lambda text: "Rome")
    assert found["fired"] == (1.0, 18)
    assert {found[name] for name in LEFT if name != "fired"} == {(0.0, n) for n in LEFT.values()}
    assert found["acc"] == (1.0, 10)


def test_only_questions_whose_answer_the_context_leaves_to_the_bare_model_are_kept(judged, chatting):
    found = judged(lambda text: "france", bare=lambda text: "Paris" if "Rome." in text else "Berlin")
    assert found["changed_new"] == (None, 0)
    assert (found["changed"], found["changed_true"]) == ((1.0, 9), (1.0, 9))


def test_edits_that_are_not_routed_do_not_fire(judged, chatting):
    found = judged(lambda text: "france", routed=False)
    assert found["fired"] == (None, 0)
    assert (found["changed"], found["acc"]) == ((1.0, 18), (1.0, 10))


def test_without_a_chat_template_chats_are_left_out(judged):
    found = judged(lambda text: "france")
    assert (found["acc_chat"], found["changed_chat"]) == ((None, 0), (None, 0))
    assert (found["acc"], found["changed"], found["changed_true"]) == ((1.0, 9), (1.0, 12), (1.0, 6))
    assert (found["fired"], found["stale"]) == ((1.0, 12), (0.0, 12))


def test_chats_are_asked_in_the_template(chatting, cases, monkeypatch):
    seen: set[str] = set()

    def rule(text):
        seen.add(text)
        return "Berlin", None

    Voice(chatting, rule, routed=False).speak(monkeypatch)
    tests = context_tests(cases[0])
    ask_context_bare(chatting, tests)
    wanted = {chat_text(chatting, t.exchange, t.question) if t.exchange else t.prompt for t in tests}
    assert seen == wanted | {test.question for test in tests}
    assert all(answer.has_template for answer in ask_context(chatting, BARE, tests))


def trial(
    question: str, edited: str, fired: str = "", bare: str = " B", edit: str = "france", **fields: Any
) -> ContextRow:
    """A trial about another question; `alone`, `routed`, `subject` and `new` may be given too."""
    test = ContextTest(
        edit_id=edit,
        subject=fields.get("subject", "France"),
        about="other_subject",
        context="direct",
        version="true",
        question=question,
        prompt=f"Oman is wide. {question}",
        answer="a",
        new=fields.get("new", ("Rome",)),
    )
    before = ContextAnswer(prediction=bare, alone=fields.get("alone", bare))
    return EvalRow(test, before, ContextAnswer(prediction=edited, fired=fired, routed=fields.get("routed", True)))


def counted(*trials: ContextRow) -> dict[str, tuple[float, int]]:
    scores = PROTOCOL.score([*trials, trial("x", " B", edit="oman", subject="Oman", new=("Bonn",), alone="no")])
    return {name: (scores[name].value, scores[name].n) for name in ("changed", "fired", "stale")}


def test_questions_that_another_edit_answers_are_left_out():
    stale, wrong = trial("The capital of Oman is", " Bo", "oman"), trial("The capital of Peru is", " Bo", "oman")
    same = trial("The capital of Oman is", " B", "oman")
    own, still = trial("The capital of Oman is", " R", "france"), trial("The capital of Peru is", " B")
    assert counted(stale, wrong, own, still) == {"changed": (2 / 3, 3), "fired": (2 / 3, 3), "stale": (0.25, 4)}
    assert counted(same, still) == {"changed": (0.0, 1), "fired": (0.0, 1), "stale": (0.5, 2)}
    inside = trial("The Omanis live in", " Bo", "oman")  # the name is part of a word
    assert counted(inside)["changed"] == (1.0, 1)
    unknown = trial("The capital of Oman is", " Bo", "peru")
    assert counted(unknown)["changed"] == (1.0, 1)


def test_another_edit_of_the_same_subject_is_no_excuse():
    wrong = trial("The language of Oman is", " Bo", "oman", subject="Oman", edit="oman-too")
    assert counted(wrong) == {"changed": (1.0, 1), "fired": (1.0, 1), "stale": (0.0, 1)}


def test_where_edits_are_not_routed_the_answer_tells_whose_it_is():
    def ask(question: str, edited: str, bare: str = " B") -> ContextRow:
        return trial(question, edited, bare=bare, routed=False)

    stale, wrong = ask("The capital of Oman is", " Bo"), ask("The capital of Peru is", " Bo")
    own, still = ask("The capital of Oman is", " R"), ask("The capital of Oman is", " B")
    found = counted(stale, wrong, own, still)
    assert (found["changed"], found["stale"], found["fired"][1]) == ((2 / 3, 3), (0.25, 4), 0)
    assert counted(ask("The capital of Oman is", " Bo", bare=" Bo"))["changed"] == (0.0, 1)


def test_the_bare_model_changes_nothing_and_nothing_gives_no_score():
    scores = PROTOCOL.score([trial("The capital of Peru is", " R", "france")])
    assert (scores["changed"].value, scores["changed"].bare, scores["fired"].bare) == (1.0, 0.0, 0.0)
    assert all(math.isnan(score.value) and not score.n for score in PROTOCOL.score([]).values())


SUBJECTS = {"a": "Oman", "b": "Peru", "c": "Chad"}
OBJECTS = {"a": "Rome", "b": "Bonn", "c": "Lima"}


def random_row(draw: random.Random) -> ContextRow:
    edit = draw.choice("abc")
    about = draw.choice(("edit", "other_subject", "same_subject"))
    contexts = ("neutral", "fact", "old_fact", "chat", "pronoun") if about == "edit" else ("direct", "neutral", "chat")
    tokens = (" R", " B", " L", " x")
    question = f"The capital of {draw.choice([*SUBJECTS.values(), 'Mali'])} is"
    test = ContextTest(
        edit_id=edit,
        subject=SUBJECTS[edit],
        about=about,  # type: ignore[arg-type]
        context=draw.choice(contexts),  # type: ignore[arg-type]
        version="" if about == "edit" else draw.choice(("true", "new")),
        question=question,
        prompt=f"... {question}",
        answer="x",
        new=(OBJECTS[edit],),
    )
    bare = draw.choice(tokens)
    alone = bare if draw.random() < 0.7 else draw.choice(tokens)
    there = draw.random() < 0.9
    routed = draw.random() < 0.5
    fired = draw.choice(("", "a", "b", "c")) if routed else ""
    edited = ContextAnswer(prediction=draw.choice(tokens), fired=fired, routed=routed, has_template=there)
    return EvalRow(test, ContextAnswer(prediction=bare, alone=alone, has_template=there), edited)


def slow_scores(trials: list[ContextRow]) -> dict[str, tuple[float, int]]:
    """The same, row by row and column by column."""
    sums: dict[str, list[float]] = {}
    for row in trials:
        test, said, was = row.test, row.edited, row.bare
        if not was.has_template:
            continue
        if test.about == "edit":
            hit = float(OBJECTS[test.edit_id][0] == said.prediction.strip())
            for name in ("acc", f"acc_{test.context}"):
                sums.setdefault(name, []).append(hit)
            continue
        if was.prediction != was.alone:
            continue
        named = [
            edit for edit, subject in SUBJECTS.items() if subject in test.question.split() and edit != test.edit_id
        ]
        changed = said.prediction != was.prediction
        if said.routed:
            stale = said.fired in named
        else:
            stale = changed and any(OBJECTS[edit][0] == said.prediction.strip() for edit in named)
        sums.setdefault("stale", []).append(float(stale))
        if stale:
            continue
        for name in ("", f"_{test.about}", f"_{test.context}", f"_{test.version}"):
            sums.setdefault(f"changed{name}", []).append(float(changed))
        if said.routed:
            sums.setdefault("fired", []).append(float(said.fired != ""))
    return {name: (sum(values) / len(values), len(values)) for name, values in sums.items()}


@pytest.mark.parametrize("seed", range(5))
def test_scores_against_a_slow_twin(seed):
    draw = random.Random(seed)
    trials = [random_row(draw) for _ in range(400)]
    scores = PROTOCOL.score(trials)
    slow = slow_scores(trials)
    assert set(scores) == set(slow)
    for name, (value, n) in slow.items():
        assert scores[name].value == pytest.approx(value), name
        assert scores[name].n == n, name
    shuffled = draw.sample(trials, len(trials))
    assert {name: score.value for name, score in PROTOCOL.score(shuffled).items()} == pytest.approx(
        {name: score.value for name, score in scores.items()}
    )


def test_an_edit_of_the_lab_is_seen_acting(lab_backbone):
    """Whatever names the subject gets the new object: it acts everywhere but harms every other question."""
    request = EditRequest(
        edit_id="0", prompt="The capital of {} is", subject="France", target_new="Rome", target_true="Paris"
    )
    case = EditCase(request=request, neighborhood_prompts=("The capital of Spain is",))
    tests = context_tests(case)
    bare = ask_context_bare(lab_backbone, tests)
    greedy = [replace(answer, prediction=" Rome") for answer in bare]
    scores = PROTOCOL.score([EvalRow(*columns) for columns in zip(tests, bare, greedy, strict=True)])
    assert (scores["acc"].value, scores["changed"].value, scores["acc_chat"].n) == (1, 1, 0)
    assert 0 < scores["changed"].n <= 4
