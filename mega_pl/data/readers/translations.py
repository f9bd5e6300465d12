"""CounterFact's edits asked in other languages, as question and answer.

A file is a JSON list of objects with a record in English under ``en`` and its translation under the language's code.
Both have ``case_id``, ``subject``, ``src`` (the edit's question), ``rephrase`` (the same in other words), ``old`` and
``alt`` (the true and the new object) and fields that are not read here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

from mega_pl.data.records import Record
from mega_pl.edits.request import EditCase
from mega_pl.errors import MegaValueError
from mega_pl.functional.language import Language, check_language
from mega_pl.functional.text import canonical


@dataclass(frozen=True, kw_only=True)
class Translation:
    """An edited fact in another language.

    Args:
        language: Its code.
        questions: The edit's question, then the same in other words.
        new: The new object in the language.
        true: The true object in the language.

    Raises:
        ValueError: If the language is unknown, a text is blank, there is no question or both objects are the same.
    """

    language: Language
    questions: tuple[str, ...]
    new: str
    true: str

    def __post_init__(self) -> None:
        check_language(self.language)
        if not self.questions or not all(text.strip() for text in (*self.questions, self.new, self.true)):
            raise MegaValueError(f"a translation must have questions and objects that are not blank, but got {self}.")
        if canonical(self.new) == canonical(self.true):
            raise MegaValueError(f"`new` must differ from `true` in {self.language}, but both are {self.new!r}.")


@dataclass(frozen=True, kw_only=True)
class TranslatedCase(EditCase):
    """A case with what it reads like in other languages.

    Args:
        translations: The edited fact, once a language.

    Raises:
        ValueError: If a language comes twice.
    """

    translations: tuple[Translation, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        languages = [translation.language for translation in self.translations]
        if len(set(languages)) != len(languages):
            raise MegaValueError(
                f"`translations` of edit {self.request.edit_id!r} must hold a language once, but got {languages}."
            )


def add(cases: Mapping[str, EditCase], record: Record, *, language: Language) -> EditCase | None:
    """The case of ``case_id`` with its translation into a language; None if it is no case of these.

    Raises:
        ValueError: If the English objects or subject are not the case's, or a field is malformed.
    """
    english, other = record.child("en"), record.child(language)
    case = cases.get(english.identifier("case_id"))
    if case is None:
        return None
    request = case.request
    fact = {"subject": request.subject, "alt": request.target_new, "old": request.target_true}
    for name, value in fact.items():
        if canonical(english.text(name)) != canonical(value):
            raise english.refusal(name, f"{value!r}, as in edit {request.edit_id!r}", english.text(name))
    translation = Translation(
        language=language,
        questions=(other.text("src"), other.text("rephrase")),
        new=other.text("alt"),
        true=other.text("old"),
    )
    before = case.translations if isinstance(case, TranslatedCase) else ()
    plain = {field.name: getattr(case, field.name) for field in fields(EditCase)}
    return TranslatedCase(**plain, translations=(*before, translation))
