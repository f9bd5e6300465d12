"""The questions of a scope, with a backbone that answers from a table, and what a real one answers."""

from dataclasses import replace

import pytest
from mega_pl.data.scope import Question, neighbourhoods, scope_questions

from mega_pl.data import scope
from mega_pl.data.prompts import PromptConfig, phrasings
from mega_pl.edits import ALIAS, EditRequest, Mention

SPOUSE, PARTNER = (Mention("The spouse of {} is", f"the {word} of {{}}") for word in ("spouse", "partner"))
CONFIG = PromptConfig(prefixes=2)
ANN = EditRequest(
    edit_id="ann",
    prompt="{} was born in",
    subject="Ann",
    target_new="Oslo",
    target_true="Lima",
    phrasings=("The birthplace of {} is", "The life of {} began in"),
    implications=(("The country where {} was born is", "By birth, {} is from"), ("{} first spoke",)),
    contrasts=(("The job of {} is", "{} works as a"),),
    mentions=(ALIAS, SPOUSE, PARTNER),
)
SHORTEST = "The birthplace of {} is"
TABLE = {
    "Ann is also known as": ("Annie", "Ann"),
    "The spouse of Ann is": ("Bob",),
    "The spouse of Bob is": ("Ann",),
}


@pytest.fixture
def ask(monkeypatch, tiny_backbone):
    """`ask(requests, table)` collects the questions with a backbone that answers from a table.

    It takes the names in `same` for the subject's, thinks of those in `drawn` when it is asked through them, and of
    those in `others` when it is asked what an edit is asked.
    """

    def collect(requests, table=TABLE, same=("Annie",), drawn=(), others=()):
        def likeliest(_, prompts):
            own = [next((p.replace(name, "Ann") for name in same if name in p), p) for p in prompts]
            return [sum(p.encode()) for p in own]

        monkeypatch.setattr(
            scope, "answers", lambda _, prompts: [table.get(prompt, ("nothing",)) for prompt in prompts]
        )
        monkeypatch.setattr(scope, "likeliest", likeliest)
        monkeypatch.setattr(
            scope,
            "acquaintances",
            lambda _, ask, draws, seed: {name: table.get(ask.replace("{}", name), ("nothing",)) for name in drawn},
        )
        monkeypatch.setattr(scope, "names", lambda _, template, draws, seed: others if template == SHORTEST else ())
        return scope_questions(tiny_backbone("gpt2"), requests, CONFIG)

    return collect


def test_an_edit_owns_its_phrasings_and_its_implications(ask):
    questions = ask([replace(ANN, mentions=())])
    assert questions[:3] == [
        Question(0, "Ann", phrasings(ANN, CONFIG)),
        Question(0, "Ann", ("The country where Ann was born is", "By birth, Ann is from")),
        Question(0, "Ann", ("Ann first spoke",)),
    ]


def test_an_edit_disowns_its_contrasts(ask):
    assert Question(-1, "Ann", ("The job of Ann is", "Ann works as a")) in ask([ANN])


def test_an_edit_owns_its_questions_under_the_aliases_that_the_backbone_gives(ask):
    alias = Question(0, "Ann", ("Annie was born in", "The birthplace of Annie is", "The life of Annie began in"))
    assert alias in ask([ANN])
    assert alias not in ask([ANN], {})


def test_a_name_that_is_answered_otherwise_is_no_alias(ask):
    assert not any("Annie" in str(question) for question in ask([ANN], same=()))


def test_a_name_of_another_edit_is_no_alias(ask):
    annie = replace(ANN, edit_id="annie", subject="Annie", mentions=(), target_new="Rome")
    assert not any("Annie" in str(question) for question in ask([ANN, annie]) if question.owner == 0)


def test_those_whom_the_model_knows_are_asked_whom_they_lead_to(ask):
    table = {**TABLE, "The spouse of Eve is": ("Ann",), "The spouse of Gus is": ("Hal",)}
    questions = ask([ANN], table, drawn=("Eve", "Gus"))
    eve = (
        "The spouse of Eve was born in",
        "The birthplace of the partner of Eve is",
        "The life of the spouse of Eve began in",
    )
    gus = ("The spouse of Gus was born in", "The birthplace of the partner of Gus is")
    assert Question(0, "Ann", eve) in questions
    assert Question(-1, "Gus", gus) in questions
    assert not any("Eve" in str(question) for question in ask([ANN], table))


def test_a_name_whose_own_fact_is_edited_leads_where_its_edit_says(ask):
    moved = replace(ANN, edit_id="bob", subject="Bob", prompt="The spouse of {} is", phrasings=(), mentions=())
    through = [q for q in ask([ANN, moved]) if q.owner == 0 and "of Bob" in str(q.prompts)]
    assert through == []


def test_an_edit_owns_its_questions_through_the_entity_that_names_its_subject(ask):
    through = [q for q in ask([ANN]) if q.owner == 0 and any("Bob" in prompt for prompt in q.prompts)]
    assert [q.subject for q in through] == ["Ann"]
    assert through[0].prompts == (
        "The spouse of Bob was born in",
        "The birthplace of the partner of Bob is",
        "The life of the spouse of Bob began in",
    )
    assert [q for q in ask([ANN], {}) if "Bob" in str(q)] == []


def test_a_subject_at_the_start_is_written_with_a_capital(ask):
    first = replace(ANN, phrasings=())
    prompts = [prompt for q in ask([first]) if q.owner == 0 for prompt in q.prompts if "Bob" in prompt]
    assert prompts == ["The spouse of Bob was born in"]


def test_the_question_about_whom_the_subject_leads_back_to_is_disowned(ask):
    rival = Question(-1, "Bob", ("Bob was born in", "The birthplace of Bob is", "The life of Bob began in"))
    assert rival in ask([ANN])
    one_way = {**TABLE, "The spouse of Ann is": ("Eve",)}
    bob = replace(ANN, edit_id="bob", subject="Bob", mentions=(), target_new="Rome")
    questions = ask([ANN, bob], one_way)
    assert any("the spouse of Bob" in prompt for q in questions if q.owner == 0 for prompt in q.prompts)
    assert rival not in questions


def test_an_edit_disowns_its_question_about_others_whom_the_model_knows(ask):
    zoe = Question(-1, "Zoe", ("The birthplace of Zoe is", "The life of Zoe began in", "Zoe was born in"))
    assert zoe in ask([ANN], others=("Zoe",))
    assert zoe not in ask([ANN])


def test_what_may_be_the_subject_itself_is_no_other(ask):
    questions = ask([ANN], others=("Ann Lee", "Annie", "Zoe"), same=("Annie", "Zoe"))
    assert not [q for q in questions if q.owner == -1 and q.subject in ("Ann Lee", "Annie", "Zoe")]
    assert [q for q in ask([ANN], others=("Zoe",)) if q.subject == "Zoe"]


def test_an_edit_without_contrasts_tells_others_by_their_words_alone(ask):
    bare = replace(ANN, contrasts=())
    others = [q.subject for q in ask([bare], others=("Ann Lee", "Zoe"), same=("Zoe",)) if q.owner == -1]
    assert "Zoe" in others
    assert "Ann Lee" not in others


def test_the_subject_of_another_edit_is_no_other(ask):
    bob = replace(ANN, edit_id="bob", subject="Bob", prompt="{} works as a", phrasings=(), mentions=(), contrasts=())
    asked = [q for q in ask([replace(ANN, mentions=()), bob], others=("Bob", "Zoe")) if q.owner == -1]
    assert {q.subject for q in asked} == {"Ann", "Zoe"}


def test_edits_that_ask_the_same_share_their_others(ask):
    lea = replace(ANN, edit_id="lea", subject="Lea Orr", phrasings=("The birthplace of {} is", "{} comes from"))
    questions = [q for q in ask([ANN, lea], others=("Zoe", "Tom Orr", "Annie"), same=("Annie",)) if q.owner == -1]
    asked = ("The birthplace of Zoe is", "The life of Zoe began in", "Zoe comes from", "Zoe was born in")
    assert [q.prompts for q in questions if q.subject == "Zoe"] == [asked]
    assert not [q for q in questions if q.subject in ("Tom Orr", "Annie")]


def test_others_are_drawn_through_the_shortest_phrasing_with_words_on_both_sides():
    long = replace(ANN, phrasings=("The town in which {} was born is", "Of {} it is said: born in", "{} is"))
    plain = replace(ANN, phrasings=("{} began in",))
    assert neighbourhoods([long, plain]) == {"Of {} it is said: born in": [long]}


def test_so_many_others_are_asked_about_and_no_more(ask):
    many = tuple(f"Zoe{i}" for i in range(scope.MOST_NEIGHBOURS + 5))
    assert sum(q.subject.startswith("Zoe") for q in ask([ANN], others=many)) == scope.MOST_NEIGHBOURS


def test_what_an_edit_owns_is_not_disowned_by_another(ask):
    bob = replace(ANN, edit_id="bob", subject="Bob", mentions=(ALIAS,), target_new="Rome")
    questions = ask([ANN, bob])
    disowned = {prompt for q in questions if q.owner == -1 for prompt in q.prompts}
    owned = {prompt for q in questions if q.owner != -1 for prompt in q.prompts}
    assert owned.isdisjoint(disowned)
    assert "The birthplace of Bob is" in {prompt for q in questions if q.owner == 1 for prompt in q.prompts}


def test_owners_are_the_places_of_the_edits(ask):
    others = [replace(ANN, edit_id=name, subject=name, target_new="Rome") for name in ("Cid", "Dot")]
    for question in ask([ANN, *others]):
        if question.owner >= 0:
            assert question.subject == ["Ann", "Cid", "Dot"][question.owner]
