"""Finding names in texts: what counts as a name, and many of them against a naive search."""

import random
import re
import unicodedata

import pytest

from mega_pl.edits.routing.subjects import FUNCTION_WORDS, SubjectFinder, composed, fold, names_of


def found(names, text):
    """The words of a text that name one of some names."""
    whole = composed(text)
    return [whole[m.start : m.end] for m in SubjectFinder({name: [i] for i, name in enumerate(names)})(whole)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The capital of France is", ["France"]),
        ("France's capital is (France)", ["France", "France"]),
        ("French-speaking France-Comté and Francea", ["France"]),
        ("Freefrance and Frances", []),
        ("FRANCE, france and FrAnCe", ["FRANCE", "france", "FrAnCe"]),
        ("", []),
    ],
)
def test_names_are_whole_words_whatever_their_case(text, words):
    assert found(["France"], text) == words


def test_places_are_those_of_the_composed_text():
    text = composed("Of  L’Île-de-France\n\n and ﬁne, Straße it\u00a0is")
    finder = SubjectFinder({"l'ile-de-france": [0], "Strasse": [1], "fine": [2]})
    assert text == "Of L'Île-de-France\nand fine, Straße it is"
    assert [(text[m.start : m.end], m.name) for m in finder(text)] == [
        ("L'Île-de-France", "l'ile-de-france"),
        ("fine", "fine"),
        ("Straße", "strasse"),
    ]


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
@pytest.mark.parametrize("name", ["São Paulo", "Björk Guðmundsdóttir", "Nguyễn Du"])
def test_accents_are_found_in_every_form_and_without(name, form):
    text = f"The mayor of {unicodedata.normalize(form, name)} is"
    assert found([name], text) == [unicodedata.normalize("NFKC", name)]
    assert found([unicodedata.normalize(form, name)], f"The mayor of {name} is") == [name]
    bare = "".join(c for c in unicodedata.normalize("NFKD", name) if not unicodedata.combining(c))
    assert found([name], f"The mayor of {bare} is") == [bare]


@pytest.mark.parametrize("apostrophe", ["'", "’", "‘", "ʼ", "`", "´"])
def test_every_apostrophe_is_one(apostrophe):
    assert found(["O'Neil Ford"], f"Who is O{apostrophe}Neil Ford?") == ["O'Neil Ford"]
    assert found([f"O{apostrophe}Neil Ford"], "Who is O'Neil Ford?") == ["O'Neil Ford"]


@pytest.mark.parametrize("space", [" ", "  ", "\u00a0", "\u202f", "\t"])
def test_every_space_is_one(space):
    assert found(["Marie Curie"], f"Where was Marie{space}Curie born?") == ["Marie Curie"]
    assert found(["Marie Curie"], f"{space}Marie{space}Curie was born in{space}") == ["Marie Curie"]


def test_lines_stay_lines():
    assert found(["Marie Curie"], "Where is Marie\nCurie") == []
    assert composed("a\r\n\r\n b \u2028c") == "a\nb\nc"


@pytest.mark.parametrize(
    "text",
    [
        "Abraham Lincoln was born in",
        "The wife of Abraham Lincoln is",
        "Who was the wife of Abraham Lincoln?",
        "Abraham Lincoln's wife is",
        "Abraham Lincoln, a president, was born in",
        "ABRAHAM LINCOLN WAS",
        "F. Murray Abraham was born in",
        "(Karl Abraham) was born in",
    ],
)
def test_a_name_that_only_belongs_to_a_longer_one_is_none(text):
    assert found(["Abraham"], text) == []


@pytest.mark.parametrize(
    "text",
    [
        "Abraham was born in",
        "The Abraham of the Bible was born in",
        "Where was Abraham born?",
        "Is Abraham, Lincoln's model, a prophet?",
        "As is known, Abraham was born in",
        "Is it Sarah? Abraham was born in",
        "Sarah, Abraham and others were born in",
        "What is the birthplace of Abraham A:",
        "The birthplace of Abraham Answer:",
    ],
)
def test_a_name_beside_other_words_is_one(text):
    assert found(["Abraham"], text) == ["Abraham"]


def test_a_name_of_several_words_may_stand_beside_others():
    assert found(["Marie Curie"], "Doctor Marie Curie Institute") == ["Marie Curie"]


@pytest.mark.parametrize("title", ["From", "In", "It"])
def test_a_title_that_is_a_function_word_stands_inside_a_sentence_as_it_is_written(title):
    assert title.casefold() in FUNCTION_WORDS
    assert found([title], f"The author of {title} is") == [title]
    assert found([title], f"The book {title} was written by") == [title]
    for text in (
        f"{title} France came the author",
        f"Yes. {title} is",
        f"He said: {title} is",
        f"'{title} is",
        f"The author came {title.lower()} France",
        f"THE AUTHOR CAME {title.upper()} FRANCE" if len(title) > 2 else "of it",
    ):
        assert found([title], text) == [], text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("東京", "東京都の知事は"),
        ("法国", "请问法国的首都是哪里"),
        ("서울", "서울의 시장은"),
        ("ไทย", "เมืองหลวงของประเทศไทยคือ"),
        ("パリ", "首都はパリです"),
    ],
)
def test_scripts_without_spaces_have_no_ends_of_words(name, text):
    assert found([name], text) == [name]
    assert found([name], f"The capital of {name} is") == [name]


def test_scripts_with_spaces_have_ends_of_words():
    assert found(["Рим"], "Столица — Рим.") == ["Рим"]
    assert found(["Рим"], "Римский папа") == []
    assert found(["κόσμος"], "ο ΚΌΣΜΟΣ είναι") == ["ΚΌΣΜΟΣ"]


def test_of_names_that_overlap_the_longest_counts():
    names = ["York", "New York", "New York City", "City Hall"]
    assert found(names, "The mayor of New York City is") == ["New York City"]
    assert found(names, "The mayor of New York is") == ["New York"]
    assert found(names, "The archbishop of York is") == ["York"]
    assert found(names, "In New York City Hall is") == ["New York City"]


def test_names_with_marks_are_found():
    names = ["J. R. R. Tolkien", "Apple Inc.", "AC/DC", "C++", "Washington, D.C.", "¡Ay!", "1984"]
    for name in names:
        assert found(names, f"The maker of {name} is") == [composed(name)]
    assert found(names, "In 19840 there") == []


def test_fold_ignores_what_the_docstring_says():
    assert fold("L’Île–de—FRANCE") == fold("l'ile-de-france") == "l'ile-de-france"
    assert fold("ﬁne ²") == "fine 2"
    assert fold("Ø") != fold("O")  # control: a letter of its own


def test_blank_names_name_nothing():
    assert found([" ", "\u0301"], "a \u0301 b") == []
    assert SubjectFinder({})("France") == []


def test_owners_are_those_of_every_spelling():
    finder = SubjectFinder({"São Paulo": [0, 2], "sao paulo": [1, 2], "Rome": [3]})
    assert finder.owners == {"sao paulo": (0, 2, 1), "rome": (3,)}


def test_a_subjects_own_name_wins_over_an_alias_of_another():
    names = names_of(["Rome", "Lazio", "Rome"], [["Roma", "The City"], ["rome", "roma"], []])
    assert names == {"Rome": [0, 2], "Lazio": [1], "Roma": [0], "The City": [0], "roma": [1]}
    assert SubjectFinder(names).owners["rome"] == (0, 2)
    assert SubjectFinder(names).owners["roma"] == (0, 1)  # an alias may name several


SYLLABLES = "ka lo mi ru te sa no vi pe du".split()


def made_up_names(count, draw):
    """Names of one to three words that share words with each other."""

    def word():
        return "".join(draw.choices(SYLLABLES, k=draw.randint(2, 4))).capitalize()

    words = [word() for _ in range(400)]
    names: set[str] = set()
    while len(names) < count:
        names.add(" ".join(draw.choices(words, k=draw.choice([1, 2, 2, 3]))))
    return sorted(names)


def naive(names, text):
    """Every place of every name by a regular expression, and of those that overlap the longest, then the first."""
    places = []
    for name in names:
        for match in re.finditer(rf"(?<!\w)(?={re.escape(name.casefold())}(?!\w))", text.casefold()):
            places.append((match.start(), match.start() + len(name)))
    chosen: list[tuple[int, int]] = []
    for start, end in sorted(places, key=lambda p: (p[0] - p[1], p[0])):
        before, after = text[:start].split(" "), text[end:].split(" ")
        inside = text[start:end]
        belongs = (len(before) > 1 and before[-2][:1].isupper()) or (len(after) > 1 and after[1][:1].isupper())
        if all(end <= a or start >= b for a, b in chosen) and (" " in inside or not belongs):
            chosen.append((start, end))
    return sorted(chosen)


def test_many_names_are_found_as_by_a_naive_search():
    draw = random.Random(0)
    names = made_up_names(10_000, draw)
    finder = SubjectFinder({name: [i] for i, name in enumerate(names)})
    hits = 0
    for _ in range(30):
        parts = [
            draw.choice([draw.choice(names), draw.choice(names), "and", "the", "was born,", "near", "or"])
            for _ in range(8)
        ]
        text = " ".join(parts)
        likely = [name for name in names if name.split()[0].casefold() in text.casefold()]
        wanted = naive(likely, text)
        got = finder(text)
        assert [(m.start, m.end) for m in got] == wanted, text
        assert all(m.name == text[m.start : m.end].casefold() for m in got)
        hits += len(got)
    assert hits > 60  # control
