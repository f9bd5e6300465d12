"""Telling languages apart by script and short words."""

from __future__ import annotations

from itertools import combinations

import pytest

from mega_pl.functional.language import FUNCTION_WORDS, check_language, han_share, language_of

TEXTS = {
    "en": "He was born in London and he is known for the songs that they wrote.",
    "de": "Er wurde in London geboren und ist für die Lieder bekannt, die sie geschrieben haben.",
    "fr": "Il est né à Londres et il est connu pour les chansons que son groupe a écrites dans la ville.",
    "zh": "他出生在伦敦。以他们写的歌曲而闻名。",
}


@pytest.mark.parametrize("language", TEXTS)
def test_sentences_are_told(language):
    assert language_of(TEXTS[language]) == language
    assert language_of(TEXTS[language].upper()) == language


def test_what_cannot_be_told():
    for text in ("", "London", "1962 ...", "伦敦 is the capital of the kingdom", "the der"):
        assert language_of(text) is None
    assert language_of("伦敦 is the capital of the kingdom", han=0.05) == "zh"
    assert language_of("伦敦 London", han=0.2) == "zh"


def test_the_share_of_characters():
    assert han_share("") == han_share("London 1") == 0
    assert han_share("伦敦、巴黎。") == 1
    assert han_share("伦敦ab") == 0.5


def test_the_word_lists_are_of_one_size_and_apart():
    assert all(28 <= len(words) <= 36 for words in FUNCTION_WORDS.values())
    assert all(not a & b for a, b in combinations(FUNCTION_WORDS.values(), 2))


def test_refusals():
    with pytest.raises(ValueError, match=r"`han` must lie in \(0, 1\], but got 0"):
        language_of("a", han=0)
    with pytest.raises(ValueError, match=r"`language` must be one of en, de, fr, zh, but got 'it'"):
        check_language("it")
