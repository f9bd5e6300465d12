"""Texts: how they are compared, how varied and how near they are, and where one names something."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from mega_pl.errors import MegaTypeError, MegaValueError

_WORD = re.compile(r"\w+(?:['\u2019]\w+)*|[^\w\s]")
_TERM = re.compile(r"\b\w\w+\b")
_SPELLINGS = {
    "'": "’‘ʼ`´′\uff07",
    '"': "“”„″\uff02",
    "-": "‐‑\u2012–—−",
    "": "\u00ad\u200b\u2060\ufeff",  # soft hyphen, zero-width space, word joiner, byte order mark
}
PLAIN_MARKS = str.maketrans({mark: plain for plain, marks in _SPELLINGS.items() for mark in marks})
"""From the many forms of apostrophes, quotes and dashes to one of each, and from invisible marks to none."""
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u19e0-\u19ff\u3000-\u30ff\u31f0-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]"
)
"""A letter or mark of a script that does not divide words by spaces."""
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_SENTENCE_END = re.compile(r"[.!?…]+[\"'\u201d\u2019)\]]*(?=\s|$)|\n")


def canonical(text: str, *, case: bool = False) -> str:
    """The form in which texts are compared; for use, they are kept as they were written.

    It is the same for composed and decomposed letters (NFC, NFD), for all kinds of apostrophes, quotes, dashes and
    spaces, with and without invisible marks, and, unless case counts, for small and capital letters.

    >>> canonical("L\u2019\u00cele\u00a0de") == canonical("l'i\u0302le  de")
    True

    Args:
        text: any text.
        case: whether case counts.
    """
    plain = unicodedata.normalize("NFD", text).translate(PLAIN_MARKS)
    return " ".join(unicodedata.normalize("NFD", plain if case else plain.casefold()).split())


def joint(prompt: str) -> str:
    """What stands between a prompt and its answer: a space, or nothing where none is written.

    Nothing follows white space, an opening quote or bracket, a hyphen, and a letter or mark of a script whose words are
    not divided by spaces, such as Chinese, Japanese, Thai, Lao, Khmer, Burmese and Tibetan.

    >>> joint("The capital of France is"), joint("法国的首都是"), joint('She said "')
    (' ', '', '')

    Args:
        prompt: any text.
    """
    last = prompt[-1:]
    quoted = last in "\"'" and (prompt.count(last) % 2 == 1) and not prompt[-2:-1].isalnum()
    together = last.isspace() or quoted or unicodedata.category(last or " ") in ("Ps", "Pi", "Pd")
    return "" if together or _UNSPACED.match(last) else " "


def counted(count: int, noun: str) -> str:
    """A number of things, the noun in the plural but for one of them.

    >>> counted(1, "edit"), counted(2, "edit")
    ('1 edit', '2 edits')
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def is_unicode(text: str) -> bool:
    """Whether a text can be written and tokenised: it holds no half of a surrogate pair."""
    return _LONE_SURROGATE.search(text) is None


def words(text: str) -> list[str]:
    """Split a text into words and punctuation marks.

    A word is a run of letters, digits and underscores, with the apostrophes inside it; every other mark is a token of
    its own. NLTK's tokenizer, which ROME uses, also splits contractions ("do", "n't") and keeps abbreviations whole.

    >>> words("It's 3.5 km, no?")
    ["It's", '3', '.', '5', 'km', ',', 'no', '?']
    """
    return _WORD.findall(text)


def ngram_entropy(tokens: Sequence[str], n: int) -> float:
    """Shannon entropy of the n-grams of a text, in bits; 0 where there are none.

    H_n = −Σ_g f(g) log₂ f(g), with f(g) the share of the n-gram g among all.

    Args:
        tokens: the text's tokens.
        n: length of an n-gram, 1 or more.

    Raises:
        ValueError: if `n` is less than 1.
    """
    if n < 1:
        raise MegaValueError(f"`n` must be 1 or more, but got {n}.")
    counts = Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
    total = counts.total()
    return sum((-count / total * math.log2(count / total) for count in counts.values()), start=0.0)


def generation_entropy(text: str) -> float:
    """Fluency of a text as ROME measures it, in bits: low where the text repeats itself.

    GE = (2/3 H₂ + 4/3 H₃) / 2 with the n-gram entropies H (arXiv:2202.05262, appendix; its tables show 100 GE).

    >>> round(generation_entropy("a b a b a b a b"), 6)
    0.995076
    """
    tokens = words(text)
    return ngram_entropy(tokens, 2) / 3 + ngram_entropy(tokens, 3) * 2 / 3


@dataclass(frozen=True)
class Tfidf:
    """Terms with their inverse document frequencies, as scikit-learn's ``TfidfVectorizer`` has them by default.

    A term is a run of two or more word characters in lower case, and idf(t) = 1 + ln((1 + N) / (1 + df(t))) for a
    term that df(t) of the N documents hold. Terms of no document are not known.

    Args:
        idf: the frequencies by term.
    """

    idf: Mapping[str, float]

    @classmethod
    def fit(cls, documents: Iterable[str]) -> Tfidf:
        """Count in how many documents each term stands.

        Raises:
            ValueError: if there is no document.
        """
        terms = [set(_terms(document)) for document in documents]
        if not terms:
            raise MegaValueError("`documents` must hold at least one text, but got none.")
        counts = Counter(term for document in terms for term in document)
        return cls({term: 1 + math.log((1 + len(terms)) / (1 + count)) for term, count in counts.items()})

    def weights(self, text: str) -> dict[str, float]:
        """The text's counts of known terms times their idf."""
        counts = Counter(term for term in _terms(text) if term in self.idf)
        return {term: count * self.idf[term] for term, count in counts.items()}

    def cosine(self, text: str, other: str) -> float:
        """Cosine of two texts' weights, in [0, 1]; 0 where one of them has no known term."""
        a, b = self.weights(text), self.weights(other)
        norm = math.hypot(*a.values()) * math.hypot(*b.values())
        return sum(weight * b.get(term, 0.0) for term, weight in a.items()) / norm if norm else 0.0


def find_all(text: str, name: str, *, case: bool = False) -> list[tuple[int, int]]:
    """Where a text holds a name in any of the spellings that `canonical` takes for one: starts and ends.

    A name has to be whole as to ASCII letters and digits, so that "Rome" is not found in "Romeo", while scripts that
    put no spaces between words work too.

    Args:
        text: where to look.
        name: what to find.
        case: whether case counts.
    """
    wanted = canonical(name, case=case)
    if not wanted or wanted not in canonical(text, case=case):
        return []
    plain, places = _placed(text, case)
    spans = (match.span() for match in re.finditer(rf"(?<!\w){re.escape(wanted)}(?!\w)", plain, re.ASCII))
    return [(places[start], places[end]) for start, end in spans if start in places and end in places]


def replace_all(text: str, name: str, new: str, *, case: bool = False) -> str:
    """The text with another one in place of a name wherever `find_all` finds that."""
    for start, end in reversed(find_all(text, name, case=case)):
        text = text[:start] + new + text[end:]
    return text


def between(text: str, start: str, end: str) -> str | None:
    """What a text holds between its start and its end, whose spelling does not count; None if it has others.

    It is empty where only the space is there that parts the two.

    >>> between("the mother of Ann is", "The mother of ", " is")
    'Ann'
    """
    plain, places = _placed(text, False)
    (head, _), (tail, _) = _placed(start, False), _placed(end, False)
    if head.endswith(" ") and plain == head + tail.removeprefix(" "):
        return ""
    first, last = len(head), len(plain) - len(tail)
    fits = first < last and plain.startswith(head) and plain.endswith(tail) and first in places and last in places
    return text[places[first] : places[last]] if fits else None


def find_name(text: str, names: Sequence[str]) -> tuple[int, int] | None:
    """Where a text first names something: start and end of the earliest of some names, the longest of those.

    Names are found as `find_all` does where case counts.

    >>> find_name("Romeo lives in Rome, Italy", ["Rome", "Rome, Italy"])
    (15, 26)
    """
    found = [span for name in names for span in find_all(text, name, case=True)]
    return min(found, key=lambda span: (span[0], -span[1]), default=None)


def starts_with_name(text: str, names: Sequence[str]) -> bool:
    """Whether one of some names is the first thing that a text says, white space apart."""
    found = find_name(text.lstrip(), names)
    return found is not None and found[0] == 0


def sentence_end(text: str) -> int:
    """Where the first sentence of a text ends.

    That is before a line break, or after a full stop, question or exclamation mark or ellipsis that white space or the
    end of the text follows; else at the end of the text. Abbreviations end a sentence too.

    >>> sentence_end(" Rome. It lies")
    6
    """
    lead = len(text) - len(text.lstrip())
    end = _SENTENCE_END.search(text, lead)
    if end is None:
        return len(text)
    return end.start() if end.group() == "\n" else end.end()


def without_names(text: str, names: Sequence[str]) -> str:
    """The text with a line break in place of each of some names, the longest first."""
    for name in sorted(names, key=len, reverse=True):
        text = replace_all(text, name, "\n", case=True)
    return text


def first_token_hit(prediction: str, answers: Sequence[str]) -> bool:
    """Whether the model's next token begins one of the answers (the prefix test of SAKE's notebooks).

    hit = strip(prediction) ≠ "" and some answer starts with it. The test is case-sensitive and lenient: " S" already
    hits "Sweden", while "the" never hits "United States".

    >>> first_token_hit(" Sw", ["Kingdom of Sweden", "Sweden"]), first_token_hit(" sw", ["Sweden"])
    (True, False)

    Args:
        prediction: the decoded argmax token.
        answers: the accepted answers (a value and its aliases), without leading spaces.

    Raises:
        TypeError: if `answers` is one string.
    """
    if isinstance(answers, str):
        raise MegaTypeError(
            f"`answers` must be a sequence of strings, but got the string {answers!r}; wrap it in a tuple."
        )
    token = prediction.strip()
    if not token:
        return False
    return any(answer.startswith(token) for answer in answers)


def _terms(text: str) -> list[str]:
    return _TERM.findall(text.lower())


@lru_cache(maxsize=4096)
def _placed(text: str, case: bool) -> tuple[str, dict[int, int]]:
    """The canonical text, with spaces at its ends, and by place in it that of the same character in the text."""
    parts: list[str] = []
    places: dict[int, int] = {}
    read = written = 0
    for letter in _letters(text):
        part = canonical(letter, case=case)
        if letter.isspace() and parts[-1:] != [" "]:
            part = " "
        places[written] = read
        read += len(letter)
        if part:
            parts.append(part)
            written += len(part)
    return "".join(parts), {**places, written: read}


def _letters(text: str) -> Iterator[str]:
    """The characters of a text, each with the marks upon it and the jamo that go on its syllable."""
    start = 0
    for i, character in enumerate(text):
        if i > start and not (unicodedata.category(character)[0] == "M" or "\u1160" <= character <= "\u11ff"):
            yield text[start:i]
            start = i
    if text:
        yield text[start:]
