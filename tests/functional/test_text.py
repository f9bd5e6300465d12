import math
import random
import unicodedata

import pytest
import torch

from mega_pl.functional.text import (
    Tfidf,
    between,
    canonical,
    find_all,
    find_name,
    first_token_hit,
    generation_entropy,
    is_unicode,
    ngram_entropy,
    replace_all,
    sentence_end,
    starts_with_name,
    without_names,
    words,
)

SNIPPETS = [
    "Paris is the capital of France.",
    "The capital of Italy is Rome; Rome is old.",
    "A pianist plays the piano.",
]


def random_text(seed, length=60):
    rng = random.Random(seed)
    return " ".join(rng.choice(["Rome", "piano", "capital", "the", "a", "is", "old", "unseen"]) for _ in range(length))


@pytest.mark.parametrize(
    ("text", "bits"),
    [
        ("a b c d e f g h", 2.659093),
        ("a b a b a b a b", 0.995076),
        ("the cat sat on the mat and the cat sat", 2.741827),
        ("word", 0.0),
        ("", 0.0),
    ],
)
def test_entropy_of_known_texts(text, bits):
    assert generation_entropy(text) == pytest.approx(bits, abs=5e-7)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_entropy_is_that_of_the_empirical_distribution(n):
    tokens = random_text(n).split()
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    shares = torch.tensor([grams.count(gram) / len(grams) for gram in set(grams)], dtype=torch.float64)
    assert ngram_entropy(tokens, n) == pytest.approx(
        float(torch.distributions.Categorical(shares).entropy()) / math.log(2)
    )


def test_entropy_reacts_to_repetition_and_not_to_the_words():
    assert generation_entropy("x y z x y z x y z") < generation_entropy("a b c d e f g h i")
    assert generation_entropy("one two three one") == generation_entropy("four five six four")


def test_a_wrong_weight_or_length_gives_other_bits():
    tokens = ["a", "b"] * 4
    right = generation_entropy("a b a b a b a b")
    assert ngram_entropy(tokens, 2) * 2 / 3 + ngram_entropy(tokens, 3) / 3 != pytest.approx(right, abs=1e-4)
    assert ngram_entropy(tokens, 1) / 3 + ngram_entropy(tokens, 2) * 2 / 3 != pytest.approx(right, abs=1e-4)


def test_words_keep_apostrophes_and_part_marks():
    assert words("Isn't O\u2019Neill (b. 1888) great?\n") == [
        "Isn't", "O\u2019Neill", "(", "b", ".", "1888", ")", "great", "?",
    ]  # fmt: skip
    assert words("東京 é_2") == ["東京", "é_2"]


def slow_tfidf(text, documents):
    """Scikit-learn's defaults, term by term: lower case, words of two characters or more, smooth idf, raw counts."""

    def terms(string):
        found, word = [], ""
        for character in string.lower() + " ":
            if character.isalnum() or character == "_":
                word += character
            else:
                found += [word] if len(word) > 1 else []
                word = ""
        return found

    vocabulary = sorted({term for document in documents for term in terms(document)})
    n = len(documents)
    idf = [math.log((1 + n) / (1 + sum(term in terms(d) for d in documents))) + 1 for term in vocabulary]
    return torch.tensor([terms(text).count(term) * w for term, w in zip(vocabulary, idf, strict=True)])


@pytest.mark.parametrize("seed", range(3))
def test_cosine_is_that_of_slow_tfidf_vectors(seed):
    text, other = random_text(seed), " ".join(SNIPPETS)
    expected = torch.cosine_similarity(slow_tfidf(text, SNIPPETS), slow_tfidf(other, SNIPPETS), dim=0)
    assert Tfidf.fit(SNIPPETS).cosine(text, other) == pytest.approx(float(expected), abs=1e-6)


def test_cosine_of_known_values():
    # idf of scikit-learn 1.x for three documents: "the" stands in all, "rome" in one
    tfidf = Tfidf.fit(SNIPPETS)
    assert tfidf.idf["the"] == pytest.approx(1.0)
    assert tfidf.idf["rome"] == pytest.approx(1 + math.log(2))
    assert tfidf.weights("Rome ROME a x") == pytest.approx({"rome": 2 * (1 + math.log(2))})
    assert tfidf.cosine(SNIPPETS[0], SNIPPETS[0]) == pytest.approx(1.0)
    assert tfidf.cosine("nothing known here", SNIPPETS[0]) == 0.0
    assert tfidf.cosine("piano", "rome") == 0.0


@pytest.mark.parametrize(
    ("text", "names", "span"),
    [
        (" Rome, Italy", ["Rome"], (1, 5)),
        (" Romeo", ["Rome"], None),
        (" rome", ["Rome"], None),
        ("Rome and Rome, Italy", ["Rome, Italy", "Rome"], (0, 4)),
        ("in Rome, Italy", ["Rome", "Rome, Italy"], (3, 14)),
        ("住在東京都", ["東京"], (2, 4)),
        ("a.b", ["a+b", "a.b"], (0, 3)),
        ("axb", ["a.b"], None),
        ("Rome", [], None),
    ],
)
def test_names_are_found_whole(text, names, span):
    assert find_name(text, names) == span


def test_a_text_starts_with_a_name_or_does_not():
    assert starts_with_name("\n Rome", ["Rome"])
    assert not starts_with_name(" the Rome", ["Rome"])
    assert not starts_with_name(" ", ["Rome"])


@pytest.mark.parametrize(
    ("text", "first"),
    [
        (" Rome. It lies", " Rome."),
        (" in Rome\nIt lies", " in Rome"),
        ("\n\nRome! Really", "\n\nRome!"),
        (' "Rome?" he said', ' "Rome?"'),
        (" 3.5 km", " 3.5 km"),
        (" Rome...", " Rome..."),
        ("", ""),
    ],
)
def test_where_the_first_sentence_ends(text, first):
    assert text[: sentence_end(text)] == first


def test_names_are_taken_out_the_longest_first():
    assert without_names("York, New York and Yorkshire", ["York", "New York"]) == "\n, \n and Yorkshire"


def test_refusals():
    with pytest.raises(ValueError, match="`n` must be 1 or more, but got 0"):
        ngram_entropy(["a"], 0)
    with pytest.raises(ValueError, match="`documents` must hold at least one text, but got none"):
        Tfidf.fit([])


CHOPIN = "Fr\u00e9d\u00e9ric Chopin"
DECOMPOSED = unicodedata.normalize("NFD", CHOPIN)
NAMES = [
    CHOPIN,
    "O'Neill",
    "Ho\u00e0ng V\u0103n Th\u00e1i",
    "Jean-Luc Godard",
    "\uc11c\uc6b8",
    "\u0915\u093f\u0932\u093e",
    "Stra\u00dfe",
]


@pytest.mark.parametrize(
    ("text", "other"),
    [
        (CHOPIN, DECOMPOSED),
        ("O'Neill", "O\u2019Neill"),
        ("O'Neill", "O\u02bcNEILL"),
        ('"Heroes"', "\u201cHeroes\u201d"),
        ("New York", "New\u00a0York"),
        ("New York", " new \u202f york\n"),
        ("2001-2005", "2001\u20132005"),
        ("Iran", "I\u00adran\u200b"),
        ("Stra\u00dfe", "STRASSE"),
        ("\uc11c\uc6b8", unicodedata.normalize("NFD", "\uc11c\uc6b8")),
    ],
)
def test_spellings_of_one_text_are_the_same(text, other):
    assert canonical(text) == canonical(other)
    assert canonical(canonical(text)) == canonical(text)


@pytest.mark.parametrize(
    ("text", "other"),
    [("Pe\u00f1a", "Pena"), ("10\u00b2", "102"), ("Rome", "Romeo"), ("New York", "NewYork"), ("a.b", "a b")],
)
def test_other_texts_stay_different(text, other):
    assert canonical(text) != canonical(other)


def test_case_counts_where_it_is_asked_for():
    assert canonical("US", case=True) != canonical("us", case=True)
    assert canonical(f"{DECOMPOSED}\u2019s", case=True) == canonical(f"{CHOPIN}'s", case=True)


def test_half_a_surrogate_pair_is_no_unicode():
    assert is_unicode("\U0001d11e")
    assert not is_unicode("a\ud834b")
    assert not is_unicode("\udd1e")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
@pytest.mark.parametrize("text_form", ["NFC", "NFD"])
def test_a_name_is_found_in_any_form_and_taken_out_whole(name, form, text_form):
    start, end = (
        unicodedata.normalize(text_form, part) for part in ("Zo\u00eb\u2019s  aunt  met ", "\u00a0in \u00c9vora")
    )
    text = start + unicodedata.normalize(text_form, name) + end
    assert find_all(text, unicodedata.normalize(form, name)) == [(len(start), len(text) - len(end))]
    assert replace_all(text, unicodedata.normalize(form, name).upper(), "{}") == f"{start}{{}}{end}"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Jos\u00e9", "Jose"),
        ("Jose\u0301", "Jose"),
        ("Zo\u00eb", "Zo"),
        ("Zoe\u0308", "Zo"),
        ("\uac01", "\uac00"),
        ("x", ""),
        ("a b", "\u200b"),
    ],
)
def test_a_name_is_not_found_in_part_of_a_letter(text, name):
    assert find_all(text, name) == []
    assert find_all(unicodedata.normalize("NFD", text), name) == []


def test_every_place_of_a_name_is_replaced():
    assert replace_all("Iran, IRAN and Iranians", "iran", "X") == "X, X and Iranians"
    assert replace_all("Iran, IRAN", "IRAN", "X", case=True) == "Iran, X"


@pytest.mark.parametrize(
    ("text", "start", "end", "inner"),
    [
        ("The  mother of\u00a0Ann is", "the mother of ", " is", "Ann"),
        (f"{DECOMPOSED}\u2019s home", "", "'s home", DECOMPOSED),
        ("The mother of is", "The mother of ", " is", ""),
        ("The mother of    is", "The mother of ", " is", ""),
        ("The father of Ann is", "The mother of ", " is", None),
        ("The mother of Ann", "The mother of ", " is", None),
        ("a", "a", "a", None),
        ("", "a", "", None),
    ],
)
def test_what_stands_between_start_and_end_is_given_as_it_is_written(text, start, end, inner):
    assert between(text, start, end) == inner


def test_names_in_answers_are_found_in_any_form():
    assert find_name(f" {DECOMPOSED}\u2019s", [f"{CHOPIN}'s"]) == (1, len(DECOMPOSED) + 3)
    assert starts_with_name(" New\u00a0York", ["New York"])
    assert without_names(f"by {DECOMPOSED}.", [CHOPIN]) == "by \n."
    assert find_name("frederic chopin", [CHOPIN]) is None


@pytest.mark.parametrize(
    ("prediction", "answers", "hit"),
    [
        (" Sweden", ["Sweden"], True),
        (" S", ["Sweden"], True),
        (" sweden", ["Sweden"], False),
        ("the", ["United States"], False),
        (" US", ["United States", "USA"], True),
        ("Swedenborg", ["Sweden"], False),
        ("weden", ["Sweden"], False),
        (" \n", ["Sweden"], False),
        ("", [""], False),
        ("Sweden", [], False),
    ],
)
def test_hit_is_the_case_sensitive_prefix_test(prediction, answers, hit):
    assert first_token_hit(prediction, answers) is hit


def test_the_answers_of_a_hit_are_several():
    with pytest.raises(TypeError, match="must be a sequence of strings, but got the string 'Sweden'"):
        first_token_hit("S", "Sweden")
