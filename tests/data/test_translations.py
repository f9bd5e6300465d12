"""Translations of CounterFact's records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from mega_pl.data import Cases, DataFile, add
from mega_pl.data.readers.translations import TranslatedCase, Translation
from mega_pl.edits import EditCase, EditRequest
from mega_pl.functional.language import language_of

ENGLISH = {"case_id": 7, "subject": "France", "src": "q", "rephrase": "r", "old": "Paris", "alt": "Rome"}
GERMAN = {
    **ENGLISH,
    "subject": "Frankreich",
    "src": "Was ist die Hauptstadt?",
    "rephrase": "Welche Stadt?",
    "alt": "Rom",
}


def translated(cases: Iterable[EditCase], path: Path, language: Any) -> Cases:
    return add(cases, DataFile(path, "translations", language=language))


@pytest.fixture
def case() -> EditCase:
    request = EditRequest(
        edit_id="7", prompt="The capital of {} is", subject="France", target_new="Rome", target_true="Paris"
    )
    return EditCase(request=request, paraphrase_prompts=("France has its capital in",))


def test_a_record_is_joined_by_its_id(case, write_json):
    path = write_json([{"en": ENGLISH, "de": GERMAN}, {"en": {**ENGLISH, "case_id": 8}, "de": GERMAN}])
    (joined,) = translated([case], path, "de")
    german = Translation(language="de", questions=("Was ist die Hauptstadt?", "Welche Stadt?"), new="Rom", true="Paris")
    assert joined == TranslatedCase(
        request=case.request, paraphrase_prompts=case.paraphrase_prompts, translations=(german,)
    )
    french = {**ENGLISH, "src": "Quelle est la capitale ?"}
    (both,) = translated([joined], write_json([{"en": ENGLISH, "fr": french}]), "fr")
    assert isinstance(both, TranslatedCase)
    assert [t.language for t in both.translations] == ["de", "fr"]


def test_names_may_be_spelt_otherwise(case, write_json):
    english = {**ENGLISH, "subject": "FRANCE", "old": "Paris\u00a0"}
    (joined,) = translated([case], write_json([{"en": english, "de": GERMAN}]), "de")
    assert isinstance(joined, TranslatedCase)
    assert len(joined.translations) == 1
    with pytest.raises(ValueError, match="`new` must differ from `true` in de, but both are 'paris'"):
        translated([case], write_json([{"en": english, "de": {**GERMAN, "alt": "paris"}}]), "de")


def test_malformed_records_are_refused(case, write_json):
    def read(record: object, language: str = "de"):
        return translated([case], write_json([record]), language)

    good = {"en": ENGLISH, "de": GERMAN}
    with pytest.raises(ValueError, match=r"`language` must be one of en, de, fr, zh, but got 'it'"):
        read(good, "it")
    with pytest.raises(ValueError, match=r"record 0: `en.alt` must be 'Rome', as in edit '7', but got 'Oslo'"):
        read({"en": {**ENGLISH, "alt": "Oslo"}, "de": GERMAN})
    with pytest.raises(ValueError, match=r"record 0: `fr.src` must be a string, but is missing"):
        read(good, "fr")
    with pytest.raises(ValueError, match=r"`new` must differ from `true` in de, but both are 'Paris'"):
        read({"en": ENGLISH, "de": {**GERMAN, "alt": "Paris"}})
    with pytest.raises(ValueError, match=r"questions and objects that are not blank"):
        read({"en": ENGLISH, "de": {**GERMAN, "src": " "}})
    with pytest.raises(ValueError, match=r"must have the `case_id` of one of the 1 cases, but none has"):
        read({"en": {**ENGLISH, "case_id": 8}, "de": GERMAN})
    twice = translated([case], write_json([good]), "de")
    with pytest.raises(ValueError, match=r"`translations` of edit '7' must hold a language once"):
        translated(twice, write_json([good]), "de")


@pytest.mark.parametrize("language", ["de", "fr", "zh"])
def test_real_records(shared_data, counterfacts, language):
    path = shared_data / "multilingual" / f"counterfact_test_{language}.json"
    if not path.is_file():
        pytest.skip(f"no {path}")
    cases = [case for case in translated(counterfacts, path, language) if isinstance(case, TranslatedCase)]
    assert len(cases) == 1031
    found = Counter(language_of(q) for case in cases for t in case.translations for q in t.questions)
    assert found[language] / found.total() > 0.7  # some questions are a word or two around names
    assert found[language] / (found.total() - found[None]) > 0.97
