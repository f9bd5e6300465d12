"""Text statistics: how varied a text is, how near two texts are, and where a text names something."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

_WORD = re.compile(r"\w+(?:['\u2019]\w+)*|[^\w\s]")
_TERM = re.compile(r"\b\w\w+\b")
_SENTENCE_END = re.compile(r"[.!?…]+[\"'\u201d\u2019)\]]*(?=\s|$)|\n")


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
        raise ValueError(f"`n` must be 1 or more, but got {n}.")
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
            raise ValueError("`documents` must hold at least one text, but got none.")
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


def find_name(text: str, names: Sequence[str]) -> tuple[int, int] | None:
    """Where a text first names something: start and end of the earliest of some names, the longest of those.

    Case counts. A name has to be whole as to ASCII letters and digits, so that "Rome" is not found in "Romeo", while
    scripts that put no spaces between words work too.

    >>> find_name("Romeo lives in Rome, Italy", ["Rome", "Rome, Italy"])
    (15, 26)
    """
    found = [match for name in names if (match := re.search(_whole(name), text, re.ASCII))]
    spans = sorted((match.span() for match in found), key=lambda span: (span[0], -span[1]))
    return spans[0] if spans else None


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
        text = re.sub(_whole(name), "\n", text, flags=re.ASCII)
    return text


def _terms(text: str) -> list[str]:
    return _TERM.findall(text.lower())


def _whole(name: str) -> str:
    return rf"(?<!\w){re.escape(name)}(?!\w)"
