"""What prompts ask last, and of whom."""

import pytest

from mega_pl.edits.routing.question import Question, asks_again, awaits_reply, forms_of, last_questions, sentences_of
from mega_pl.edits.routing.subjects import SubjectFinder
from mega_pl.protocols.sake import DOUBT_TEMPLATES

NAMES = ["Marie Curie", "France", "J. R. R. Tolkien", "Apple Inc.", "Washington, D.C.", "St. Louis", "Help! My Hat"]
FINDER = SubjectFinder({name: [i] for i, name in enumerate(NAMES)})


def questions(*turns):
    return last_questions(turns, FINDER)


def subjects(*turns):
    """Whom the last question of some turns may be about."""
    return [NAMES[question.edits[0]] for question in questions(*turns)]


def test_a_question_is_masked_and_says_whom_it_is_about():
    (question,) = questions("The capital of FRANCE is")
    assert question == Question(("The capital of X is",), (1,), "FRANCE", "name")


@pytest.mark.parametrize(
    "text",
    [
        "The capital of France is Lyon. The capital of Spain is",
        "The capital of France is Lyon. Berlin is a city in",
        "Fact: the capital of France is Lyon.\nQ: Where was Albert Einstein born?\nA:",
        "Marie Curie was born in Warsaw. The birthplace of Albert Einstein is",
        "France borders Spain. What is 2 + 2?",
        "Nobody is named here, and nothing is said about",
    ],
)
def test_a_fact_that_stands_before_another_question_is_not_asked(text):
    assert subjects(text) == []


@pytest.mark.parametrize(
    "before",
    [
        "It was a quiet morning in the village.",
        "Rome is the capital of Italy!",
        "Where is Berlin? In Germany.",
        "Marie Curie was born in Warsaw.",
        "He said (in French): 'No.'",
        "3.5 is a number. So is 7.",
        "A line\n\nand another\n",
        "请看。",
    ],
)
def test_a_question_that_comes_last_is_asked_after_anything(before):
    (question,) = questions(f"{before} The capital of France is")
    assert "The capital of X is" in question.forms
    assert (question.words, question.reference) == ("France", "name")


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("Marie Curie was a physicist. She was born in", "X was born in"),
        ("Marie Curie was a physicist. And where was she born?", "And where was X born?"),
        ("Marie Curie was a physicist. Her birthplace is", "X's birthplace is"),
        ("France is old. Its capital is", "X's capital is"),
        ("Marie Curie was a physicist. It rained a lot. She was born in", "X was born in"),
    ],
)
def test_a_pronoun_stands_for_the_name_before_it(text, form):
    (question,) = questions(text)
    assert form in question.forms
    assert question.reference == "pronoun"
    assert question.words in ("Marie Curie", "France")


@pytest.mark.parametrize(
    "text",
    [
        "Marie Curie was a physicist. Then came Albert Einstein. He was born in",
        "Marie Curie was a physicist. The city of Ulm is small. It lies in",
        "Marie Curie was a physicist. Like Albert Einstein, she was born in",
        "The scientist worked hard. She was born in",
    ],
)
def test_a_name_in_between_or_none_at_all_leaves_a_pronoun_alone(text):
    assert subjects(text) == []


def test_the_subject_that_was_named_last_is_meant():
    assert subjects("Marie Curie lived in Paris. France is old. Its capital is") == ["France"]


@pytest.mark.parametrize(
    "again",
    [
        "Think again and answer:",
        "Are you sure?",
        "Is this correct? Please reconsider and give the right answer:",
        "Rethink and give the correct answer:",
        "Answer:",
    ],
)
def test_a_question_is_asked_again(again):
    (question,) = questions(f"Where was Marie Curie born? {again}")
    assert "Where was X born?" in {form.removesuffix(f" {again}") for form in question.forms}
    assert asks_again(again.rpartition("? ")[2])


def test_what_only_looks_like_asking_again_is_a_question_of_its_own():
    assert not asks_again("The correct colour of snow is")
    assert subjects("Where was Marie Curie born? The correct colour of snow is") == []


@pytest.mark.parametrize("begun", ["It is", "She was", "That would be", "A:", "Answer:"])
def test_an_answer_that_says_nothing_yet_belongs_to_its_question(begun):
    assert subjects(f"What is the capital of France? {begun}") == ["France"]


@pytest.mark.parametrize("line", ["\n", " "])
@pytest.mark.parametrize(("q", "a"), [("Q", "A"), ("Question", "Answer"), ("User", "Assistant")])
def test_a_label_is_no_question(q, a, line):
    (question,) = questions(f"{q}: What is the capital of France?{line}{a}:")
    assert f"{q}: What is the capital of X? {a}:" in question.forms
    assert f"What is the capital of X? {a}:" in question.forms


def test_of_few_shots_the_last_is_asked():
    shots = "Q: What is the capital of Spain?\nA: Madrid\n\n"
    own = "Q: What is the capital of France?\nA:"
    assert subjects(shots + own) == ["France"]
    assert subjects(f"{own} Paris\n\nQ: What is the capital of Spain?\nA:") == []
    assert subjects(f"{own} Paris\n\nQ: Where was Marie Curie born?\nA:") == ["Marie Curie"]


@pytest.mark.parametrize("name", DOUBT_TEMPLATES)
@pytest.mark.parametrize("prompt", ["The capital of France is", "France has its capital in"])
def test_sakes_doubts_ask_the_edits_question(name, prompt):
    doubt = DOUBT_TEMPLATES[name].format(prompt=prompt, new="Lyon", true="Paris")
    (question,) = questions(doubt)
    assert question.words == "France"
    masked = prompt.replace("France", "X")
    assert any(masked in form and len(form) < 2 * len(masked) + 60 for form in question.forms)


@pytest.mark.parametrize(
    "text",
    [
        "J. R. R. Tolkien was born in",
        "The author J. R. R. Tolkien was born in",
        "Apple Inc. was founded by",
        "Washington, D.C. is ruled by",
        "St. Louis lies in",
        "The author of Help! My Hat is",
    ],
)
def test_a_name_with_full_stops_is_one_sentence(text):
    (question,) = questions(text)
    assert len(sentences_of([text], FINDER)) == 1
    assert any("X" in form for form in question.forms)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("Mr. Smith and Dr. No met John F. Kennedy in St. Moritz", 1),
        ("Prof. Mayer vs. Jr. Miller", 1),
        ("It rained. Then it stopped. And", 3),
        ("It cost 3.5 euros. Or 7", 2),
        ("'Go!' He went… Yes", 3),
        ("One\nTwo\n\nThree", 3),
        ("他来了。她走了。谁", 3),
        ("e.g. this one", 1),
        ("Is it? no", 1),  # no sentence begins with a small letter
        ("", 0),
    ],
)
def test_sentences_end_where_they_do(text, count):
    sentences = sentences_of([text], FINDER)
    assert len(sentences) == count
    words = "".join(filter(str.isalnum, text))
    assert "".join(filter(str.isalnum, "".join(s.text for s in sentences))) == words  # nothing is lost


@pytest.mark.parametrize("end", [".", "!", "…", ".'", "。"])
def test_a_finished_statement_asks_nothing(end):
    assert subjects(f"The capital of France is Paris{end}") == []
    assert subjects("The capital of France is Paris") == ["France"]  # control


@pytest.mark.parametrize("verb", ["Tell me", "Please name", "Now give", "Complete: state", "so say"])
def test_a_request_asks_though_it_ends_in_a_full_stop(verb):
    assert subjects(f"{verb} the capital of France.") == ["France"]
    assert subjects("They tell me the capital of France.") == []


def test_a_turn_of_a_conversation_asks_though_it_ends_in_a_full_stop():
    text = "I would like to know the capital of France."
    assert subjects(text) == []
    assert subjects(text, "") == subjects("You help.", text) == subjects("Hello.", text, "") == ["France"]


def test_a_conversation_goes_on_about_the_same_subject():
    assert subjects("Where was Marie Curie born?", "That is known.", "And where did she die?", "") == ["Marie Curie"]
    assert subjects("Where was Marie Curie born?", "In Warsaw.", "And where did she die?", "") == []  # a name between
    assert subjects("Where was Marie Curie born?", "Warsaw.", "Are you sure?", "") == ["Marie Curie"]
    assert subjects("Where was Marie Curie born?", "In Warsaw.", "And Albert Einstein?", "") == []


def test_a_question_about_two_subjects_has_two_readings():
    found = questions("The border of France with Washington, D.C. is")
    assert {q.edits: q.forms[0] for q in found} == {
        (1,): "The border of X with Washington, D.C. is",
        (4,): "The border of France with X is",
    }


def test_a_subject_that_is_named_twice_is_masked_twice():
    (question,) = questions("In France, the capital of France is")
    assert question.forms[0] == "In X, the capital of X is"


def test_every_edit_of_a_subject_comes_into_question():
    finder = SubjectFinder({"France": [0, 3], "france": [5]})
    (question,) = last_questions(["The capital of France is"], finder)
    assert question.edits == (0, 3, 5)


@pytest.mark.parametrize(
    ("masked", "forms"),
    [
        ("X was born in", ("X was born in",)),
        ("X", ("X",)),
        ("Dr. X was born in", ("Dr. X was born in", "X was born in")),
        ("Reading on. The X of is", ("Reading on. The X of is", "The X of is")),
        ("Mr. Smith said: The capital of X is", ("Mr. Smith said: The capital of X is", "The capital of X is")),
        ("the answer to 'the capital of X is' must be", "the capital of X is"),
        ("no subject", ("no subject",)),
    ],
)
def test_forms_are_the_whole_and_its_core(masked, forms):
    if isinstance(forms, str):
        assert forms in forms_of(masked)
    else:
        assert forms_of(masked) == forms
    assert forms_of(masked)[0] == masked


@pytest.mark.parametrize("turns", [(), ("",), (" \n ",), ("?",), ("...",)])
def test_nothing_is_asked_by_nothing(turns):
    assert questions(*turns) == []


def test_without_subjects_nobody_is_asked_about():
    assert last_questions(["The capital of France is"], SubjectFinder({})) == []


@pytest.mark.parametrize(
    ("turns", "reply"),
    [
        (["Where was she born?"], True),
        (["Q: Where was she born?\nA:"], True),
        (["Q: Where was she born? A: "], True),
        (["Where was she born? Answer:"], True),
        (["She was born.\n\nBirthplace:"], True),
        (['He asked: "Where was she born?"'], True),
        (["居里夫人生于哪里？"], True),
        (["She was born in", ""], True),
        (["Hello", "Where was she born?", ""], True),
        (["She was born in"], False),
        (["The capital of France:"], False),
        (["Think again and give me the right answer:"], False),
        (["Where was she born?", "She was born in"], False),
        (["Where was she born? She was born in"], False),
        ([], False),
    ],
)
def test_a_question_and_a_users_turn_await_a_reply(turns, reply):
    assert awaits_reply(turns) is reply
