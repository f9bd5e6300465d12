"""Checks of what callers give: each refuses in one line that names the thing, the rule and the value."""

import reprlib
from typing import TypeVar

from mega_pl.errors import MegaTypeError, MegaValueError
from mega_pl.functional.text import is_unicode

Item = TypeVar("Item")


def check_text(name: str, value: object) -> str:
    """Give a text without the white space around it; refuse what is then empty.

    Raises:
        TypeError: The value is not a str.
        ValueError: It is blank, or holds half of a surrogate pair, which no tokenizer takes.
    """
    check_type(name, value, str)
    text = str(value).strip()
    if not text:
        raise MegaValueError(f"{name} must not be blank, but got {value!r}.")
    if not is_unicode(text):
        raise MegaValueError(
            f"{name} must not hold half of a surrogate pair, but got {value!r}; give the whole character."
        )
    return text


def check_texts(name: str, value: object) -> tuple[str, ...]:
    """Give a tuple of texts, each as `check_text` does.

    Raises:
        TypeError: The value is not a tuple of str.
        ValueError: A text is blank, or holds half of a surrogate pair.
    """
    return tuple(check_text(name, item) for item in check_tuple(name, value, object))


def check_tuple(name: str, value: object, kind: type[Item]) -> tuple[Item, ...]:
    """Give a tuple back.

    Raises:
        TypeError: The value is not a tuple, or an item is not of the kind.
    """
    if not isinstance(value, tuple):
        way_out = f"write ({value!r},)" if isinstance(value, str) else "write (..., ...)"
        raise MegaTypeError(f"{name} must be a tuple, but got {type_and_value(value)}; {way_out}.")
    for item in value:
        check_type(f"an item of {name}", item, kind)
    return value


def check_type(name: str, value: object, kind: type) -> None:
    """Refuse a value of another type.

    Raises:
        TypeError: The value is not of the kind.
    """
    if not isinstance(value, kind):
        article = "an" if kind.__name__[0].lower() in "aeio" else "a"
        raise MegaTypeError(f"{name} must be {article} {kind.__name__}, but got {type_and_value(value)}.")


def type_and_value(value: object) -> str:
    """A value of a wrong type, for a message: the type, and the value in short."""
    return f"{type(value).__name__}: {reprlib.repr(value)}"
