"""Questions as prompts that an answer follows."""

from typing import Literal

QuestionForm = Literal["bare", "qa"]
"""How a question is put to a model: as it is, or after "Q:" and with "A:" on the next line."""


def pose(question: str, form: QuestionForm) -> str:
    r"""The question as a prompt; the answer follows after a space.

    >>> pose("Where was {} born?", "qa")
    'Q: Where was {} born?\nA:'
    """
    return question if form == "bare" else f"Q: {question}\nA:"


def phrasings(question: str, form: QuestionForm) -> tuple[str, ...]:
    """The bare question where the prompt of an edit is not it already."""
    return () if form == "bare" else (question,)
