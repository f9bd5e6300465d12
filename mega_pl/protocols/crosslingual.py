"""Cross-lingual: does an edit made in English answer in other languages, and does the model go on in them?

Each language has its columns. "success" is the share of tests where the new object is likelier than the true one by
their mean log-likelihood over tokens, "exact" the share where the new object is what greedy decoding would write, and
"consistency" the share of continuations in the question's language. The last keeps the tests where the bare model's
continuation is in any language that `language_of` can tell, so that an edit which makes it fall apart counts as a
failure. Every test counts once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Literal

from mega_pl.asking import NEW_TOKENS, Edited, continuations, teacher_forced
from mega_pl.backbone import Backbone
from mega_pl.data.readers.translations import TranslatedCase
from mega_pl.edits import EditCase
from mega_pl.functional.language import Language, language_of
from mega_pl.protocols.base import Protocol
from mega_pl.protocols.measures import Mean, Measure
from mega_pl.protocols.rows import EvalRow, Outcomes, outcomes

CrosslingualKind = Literal["question", "rephrase"]
"""The edit's question in the language, and the same in other words."""

LANGUAGES: tuple[Language, ...] = ("de", "fr", "zh")
"""The languages that columns are made for."""

FRAMES: dict[Language, str] = {
    "en": "Question: {} Answer:",
    "de": "Frage: {} Antwort:",
    "fr": "Question : {} Réponse :",
    "zh": "问题：{} 回答：",
}
"""How a question is put, so that its answer comes next. An answer follows after a space, in Chinese too."""


@dataclass(frozen=True, kw_only=True)
class CrosslingualTest:
    """One question in another language.

    Args:
        edit_id: The edit that it belongs to.
        kind: Which question of the translation.
        language: Its language.
        prompt: What is asked.
        new: The new object in the language.
        true: The true object in the language.
    """

    edit_id: str
    kind: CrosslingualKind
    language: Language
    prompt: str
    new: str
    true: str


@dataclass(frozen=True, kw_only=True)
class CrosslingualAnswer:
    """What a model makes of a test.

    Args:
        new: Log-probabilities of the new object's tokens, in nats.
        true: The same for the true object.
        exact: Whether every token of the new object is the most probable one.
        text: What the model writes greedily after the prompt.
        fired: The edit that the prompt got; "" if none did or edits are not routed.
    """

    new: tuple[float, ...]
    true: tuple[float, ...]
    exact: bool
    text: str
    fired: str = ""


CrosslingualRow = EvalRow[CrosslingualTest, CrosslingualAnswer]


def crosslingual_tests(case: EditCase) -> tuple[CrosslingualTest, ...]:
    """The tests of a case, language by language; none without translations of it."""
    translations = case.translations if isinstance(case, TranslatedCase) else ()
    kinds: tuple[CrosslingualKind, ...] = ("question", "rephrase")
    return tuple(
        CrosslingualTest(
            edit_id=case.request.edit_id,
            kind=kinds[min(place, 1)],
            language=translation.language,
            prompt=FRAMES[translation.language].format(question),
            new=translation.new,
            true=translation.true,
        )
        for translation in translations
        for place, question in enumerate(translation.questions)
    )


def ask_crosslingual(
    backbone: Backbone, edited: Edited, tests: Sequence[CrosslingualTest], *, new_tokens: int = NEW_TOKENS
) -> list[CrosslingualAnswer]:
    """Force both objects after each prompt, and write on after it greedily.

    Args:
        backbone: The model, within its edits.
        edited: The edits in force; they say how a prompt is asked.
        tests: What to ask.
        new_tokens: The most tokens to write.

    Returns:
        An answer for each test.

    Raises:
        ValueError: If an object merges with its prompt, or a text is too long for the model.
    """
    pairs = [(test.prompt, target) for test in tests for target in (test.new, test.true)]
    forced = teacher_forced(backbone, [p for p, _ in pairs], [answer for _, answer in pairs], edited=edited)
    texts = continuations(backbone, [test.prompt for test in tests], new_tokens, edited=edited)
    return [
        CrosslingualAnswer(new=a.log_probs, true=b.log_probs, exact=all(a.matches), text=t.text, fired=a.fired)
        for a, b, t in zip(forced[::2], forced[1::2], texts, strict=True)
    ]


def _success(test: CrosslingualTest, answer: CrosslingualAnswer) -> bool:
    return -fmean(answer.new) < -fmean(answer.true)


def _exactness(test: CrosslingualTest, answer: CrosslingualAnswer) -> bool:
    return answer.exact


def _stays(test: CrosslingualTest, answer: CrosslingualAnswer) -> bool:
    return language_of(answer.text) == test.language


def _outcomes(
    language: Language,
    judge: Callable[[CrosslingualTest, CrosslingualAnswer], bool],
    rows: Sequence[CrosslingualRow],
) -> Outcomes:
    return outcomes((row for row in rows if row.test.language == language), judge)


def _consistency(language: Language, rows: Sequence[CrosslingualRow]) -> Outcomes:
    return _outcomes(language, _stays, [row for row in rows if language_of(row.bare.text) is not None])


def _measures() -> dict[str, Measure]:
    found: dict[str, Measure] = {}
    for language in LANGUAGES:
        found[f"{language}_success"] = Mean(partial(_outcomes, language, _success))
        found[f"{language}_exact"] = Mean(partial(_outcomes, language, _exactness))
        found[f"{language}_consistency"] = Mean(partial(_consistency, language))
    return found


PROTOCOL: Protocol[CrosslingualTest, CrosslingualAnswer, CrosslingualRow] = Protocol(
    name="crosslingual",
    tests=crosslingual_tests,
    ask=ask_crosslingual,
    answer=CrosslingualAnswer,
    measures=_measures,
)
