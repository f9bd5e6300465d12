"""Whole answers: what is asked in which form, where an answer ends, and when it is right."""

from __future__ import annotations

import math
import pickle
import random
import re
import string
from dataclasses import replace

import pytest

from mega_pl.asking import BARE, chat_prompt
from mega_pl.backbone import Backbone
from mega_pl.data.relations import relations
from mega_pl.edits import EditCase, EditRequest
from mega_pl.protocols import EvalRow
from mega_pl.protocols.cases import question_of, questions
from mega_pl.protocols.wild import (
    PROTOCOL,
    WildAnswer,
    WildTest,
    answer_of,
    ask_wild,
    judged_by,
    plain,
    wild_tests,
)

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}> {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def chatty(backbone: Backbone) -> Backbone:
    backbone.tokenizer.chat_template = TEMPLATE
    return backbone


def test_the_tests_of_a_case(cases):
    known = replace(cases[0], request=replace(cases[0].request, relation="P36"))
    wordings = ("The city that is the capital of France is", "France has its capital in")
    tests = wild_tests(known)
    assert [(t.form, t.kind, t.wording) for t in tests] == [
        ("completion", "rewrite", "The capital of France is"),
        *(("completion", "paraphrase", text) for text in wordings),
        ("question", "rewrite", "Which city is the seat of government of France?"),
        *(("question", "paraphrase", text) for text in wordings),
        ("chat", "rewrite", "Which city is the seat of government of France?"),
        *(("chat", "paraphrase", text) for text in wordings),
    ]
    assert {(t.new, t.old) for t in tests} == {(("Rome", "Roma", "City of Rome"), "Paris")}


@pytest.mark.parametrize(
    ("prompt", "relation", "question"),
    [
        ("Where was {} born?", "P36", "Where was Ann born?"),
        ("{} comes from", "P19", "In which town or city was Ann born?"),
        ("{} comes from", "P000", "Ann comes from"),
        ("{} comes from", "", "Ann comes from"),
    ],
)
def test_where_a_question_is_found(prompt, relation, question):
    request = EditRequest(prompt=prompt, subject="Ann", target_new="Rome", target_true="Oslo", relation=relation)
    assert question_of(request) == question


def test_each_relation_has_a_question_that_edits_never_see():
    assert questions().keys() == relations().keys()
    references = (text for relation in relations().values() for text in relation.references)
    seen = {plain(text.removeprefix("Q: ").removesuffix(" A:")) for text in references}
    for name, text in questions().items():
        assert text.count("{}") == 1, name
        assert text.endswith("?"), name
        assert plain(text) not in seen, name


def written_slowly(backbone: Backbone, text: str, new_tokens: int) -> str:
    """Token by token, the whole text anew each time, up to the first stop."""
    ids = list(backbone.tokenizer(text)["input_ids"])
    new = ""
    for _ in range(new_tokens):
        logits = backbone.last_logits(backbone.pad([ids]))
        ids.append(int(logits.argmax()))
        new = str(backbone.tokenizer.decode(ids))[len(text) :]
        if ids[-1] == backbone.tokenizer.eos_token_id or re.search(r"[.\n]", new):
            break
    return re.split(r"[.\n]|<\|endoftext\|>", new)[0].strip()


@pytest.mark.parametrize("which", [0, 1, 2])
def test_against_a_slow_twin(chatty, cases, editors, which):
    tests = [test for case in cases for test in wild_tests(case)]
    with editors[which].edit(chatty, [case.request for case in cases]) as edited:
        answers = ask_wild(chatty, edited, tests, new_tokens=12)
        for test, answer in zip(tests, answers, strict=True):
            asked = {
                "completion": test.wording,
                "question": f"Please answer the question:\n\nQ: {test.wording}\nA:",
                "chat": f"<user> {test.wording}\n<assistant>",
            }[test.form]
            assert answer_of(answer.text) == written_slowly(chatty, edited.prompt(asked), 12)
    assert all(answer.has_template for answer in answers)
    assert len({answer.text for answer in answers}) > 3


def test_without_a_template_chats_stay_unasked(backbone, cases):
    tests = wild_tests(cases[0])
    answers = ask_wild(backbone, BARE, tests, new_tokens=2)
    assert [answer.has_template for answer in answers] == [test.form != "chat" for test in tests]
    scores = PROTOCOL.score([EvalRow(*columns) for columns in zip(tests, answers, answers, strict=True)])
    assert (scores["chat_rewrite_exact"].n, scores["question_rewrite_exact"].n) == (0, 1)
    chats = [test for test in tests if test.form == "chat"]
    assert ask_wild(backbone, BARE, chats) == [WildAnswer(has_template=False)] * len(chats)


def test_a_chat_has_its_roles_and_no_second_first_token(chatty):
    assert chat_prompt(chatty, ["a", "b", "c"]) == "<user> a\n<assistant> b\n<user> c\n<assistant>"
    chatty.tokenizer.chat_template = "<|endoftext|>" + TEMPLATE
    chatty.tokenizer.bos_token = "<|endoftext|>"
    assert chat_prompt(chatty, ["a"]).startswith("<|endoftext|><user>")
    chatty.prepends_bos = True
    assert chat_prompt(chatty, ["a"]) == "<user> a\n<assistant>"


def normalised(text: str) -> str:
    """As SQuAD's script does it, step by step."""
    text = "".join(c for c in text.lower() if c not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


@pytest.mark.parametrize(
    "text", [" The Hague", "an apple, a day!", "U.S.A", "  New\tYork  ", "Rock'n'roll", "theatre", "C++", ""]
)
def test_plain_is_the_usual_normal_form(text):
    assert plain(text) == normalised(text)


def test_a_name_of_nothing_but_an_article_is_not_the_empty_answer():
    assert plain("A") == "a"
    assert plain("") == ""
    assert plain("L\u2019Aquila") == plain("L'Aquila") == "laquila"


TEXTS = [  # text, exact, contains, old
    (" Rome. Paris was the capital before.", 1, 1, 0),
    ("\nRome", 0, 0, 0),
    (" the ROMA\nand Paris", 1, 1, 0),
    (" in Rome, not in Paris", 0, 1, 1),
    (" Paris", 0, 0, 1),
    (" Paris-on-Rome", 0, 0, 0),
    (" Paris on Rome", 1, 1, 0),
    (" Romeo and Parisians", 0, 0, 0),
    (' "Rome"', 1, 1, 0),
    ("", 0, 0, 0),
]


def hand_made(form: str = "completion", kind: str = "rewrite") -> list[EvalRow[WildTest, WildAnswer]]:
    return [
        EvalRow(
            WildTest(
                edit_id=str(i),
                form=form,  # type: ignore[arg-type]
                kind=kind,  # type: ignore[arg-type]
                wording=f"q{i}",
                new=("Rome", "Roma", "Paris on Rome"),
                old="Paris",
            ),
            WildAnswer(text=" Paris. Rome"),
            WildAnswer(text=text),
        )
        for i, (text, *_) in enumerate(TEXTS)
    ]


@pytest.mark.parametrize("form", ["completion", "question", "chat"])
@pytest.mark.parametrize("kind", ["rewrite", "paraphrase"])
def test_hand_made_scores(form, kind):
    scores = PROTOCOL.score(hand_made(form, kind))
    for i, name in enumerate(("exact", "contains", "old"), start=1):
        score = scores[f"{form}_{kind}_{name}"]
        assert score.value == pytest.approx(sum(bool(row[i]) for row in TEXTS) / len(TEXTS)), name
        assert score.n == len(TEXTS)
        assert score.bare == (name == "old")
    assert sum(score.n for score in scores.values()) == 3 * len(TEXTS)


def test_planted_mistakes_are_seen():
    rows = hand_made()
    right = {name: score.value for name, score in PROTOCOL.score(rows).items() if score.n}
    planted = {
        "uncut": lambda t: replace(t, edited=WildAnswer(text=t.edited.text.replace(".", ",").replace("\n", " "))),
        "no other names": lambda t: replace(t, test=replace(t.test, new=t.test.new[:1])),
        "swapped": lambda t: replace(t, test=replace(t.test, new=(t.test.old,), old=t.test.new[0])),
    }
    for name, change in planted.items():
        wrong = {name: score.value for name, score in PROTOCOL.score([change(t) for t in rows]).items() if score.n}
        assert wrong["completion_rewrite_exact"] != right["completion_rewrite_exact"], name
        assert wrong["completion_rewrite_old"] != right["completion_rewrite_old"], name


def test_a_judge_is_asked_about_both_answers():
    asked: list[tuple[str, str, str]] = []

    def judge(question: str, gold: str, answer: str) -> bool:
        asked.append((question, gold, answer))
        return "Romeo" in answer

    protocol = judged_by(judge)
    scores = protocol.score(hand_made())
    assert set(scores) - set(PROTOCOL.score([])) == {f"{name[:-6]}_judged" for name in scores if "exact" in name}
    assert (scores["completion_rewrite_judged"].value, scores["completion_rewrite_judged"].bare) == (0.1, 0)
    assert ("q0", "Rome", "Rome") in asked
    assert ("q0", "Rome", "Paris") in asked
    assert "completion_rewrite_judged" in protocol.headline


def test_a_judge_of_a_module_may_be_pickled():
    metrics = judged_by(echoes).metrics()
    metrics.update(hand_made())
    assert pickle.loads(pickle.dumps(metrics)).compute()["completion_rewrite_judged"] == 0.1


def echoes(question: str, gold: str, answer: str) -> bool:
    return answer == gold


PLACES = ["Rome", "rome", "Paris", "Paris on Rome", "Oslo", "The Hague", "hague"]


def random_rows(seed: int, edits: int = 90) -> list[EvalRow[WildTest, WildAnswer]]:
    rng = random.Random(seed)

    def text(count: int) -> str:
        return "".join(
            rng.choice([" ", " ", " and ", ", ", ". ", "\n", "s"]) + rng.choice(PLACES) for _ in range(count)
        )

    rows = []
    for edit in range(edits):
        new = tuple(rng.sample(PLACES, 2))
        old = rng.choice([place for place in PLACES if place.lower() not in map(str.lower, new)])
        for form in ("completion", "question", "chat"):
            for kind in ("rewrite", "paraphrase", "paraphrase"):
                put = form != "chat" or edit % 3 > 0
                test = WildTest(edit_id=str(edit), form=form, kind=kind, wording="q", new=new, old=old)
                bare, edited = (WildAnswer(text=text(count) if put else "", has_template=put) for count in (1, 3))
                rows.append(EvalRow(test, bare, edited))
    rng.shuffle(rows)
    return rows


def slow_scores(rows, side):
    found: dict[str, list[bool]] = {}
    for row in rows:
        said, test = getattr(row, side), row.test
        if not row.bare.has_template:
            continue
        answer = normalised(re.split(r"[.\n]", said.text)[0])
        new, rest = [normalised(name) for name in test.new], f" {answer} "
        held = any(f" {name} " in rest for name in new)
        for name in sorted(new, key=len, reverse=True):
            while f" {name} " in rest:
                rest = rest.replace(f" {name} ", " | ")
        values = {"exact": answer in new, "contains": held, "old": f" {normalised(test.old)} " in rest}
        for name, value in values.items():
            found.setdefault(f"{test.form}_{test.kind}_{name}", []).append(value)
    return {name: (sum(values) / len(values), len(values)) for name, values in found.items()}


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_the_slow_ones(seed):
    rows = random_rows(seed)
    scores = PROTOCOL.score(rows)
    for side in ("edited", "bare"):
        wanted = slow_scores(rows, side)
        assert wanted.keys() == scores.keys()
        for name, (value, n) in wanted.items():
            found = scores[name].value if side == "edited" else scores[name].bare
            assert found == pytest.approx(value, abs=1e-12), (side, name)
            assert scores[name].n == n
            assert 0 < scores[name].value + scores[name].bare < 2


def test_an_empty_score():
    assert all(score.n == 0 and math.isnan(score.value) for score in PROTOCOL.score([]).values())


def test_a_text_that_is_too_long_is_refused(tiny_backbone, cases: list[EditCase]):
    tests = wild_tests(replace(cases[0], paraphrase_prompts=("Rome " * 40,)))
    with pytest.raises(ValueError, match="a prompt and its continuation must have at most 64 tokens"):
        ask_wild(tiny_backbone("gpt2"), BARE, tests)
