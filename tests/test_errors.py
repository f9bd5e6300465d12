"""Every error of the package is of one base class."""

import ast
import builtins
from pathlib import Path

import pytest

import mega_pl
from mega_pl.errors import MegaIndexError, MegaKeyError, MegaNumericError, MegaTypeError, MegaValueError

PACKAGE = Path(__file__).parents[1] / "mega_pl"
ERRORS = {name for name, kind in vars(builtins).items() if isinstance(kind, type) and issubclass(kind, Exception)}


@pytest.mark.parametrize("path", sorted([*PACKAGE.glob("**/*.py"), *PACKAGE.glob("callbacks/*.py")]), ids=str)
def test_no_error_is_raised_that_is_not_the_package_s(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))
    raised = [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)]
    assert not [ast.unparse(call.func) for call in raised if ast.unparse(call.func) in ERRORS]


@pytest.mark.parametrize(
    ("kind", "built_in"),
    [
        (MegaValueError, ValueError),
        (MegaTypeError, TypeError),
        (MegaKeyError, KeyError),
        (MegaIndexError, IndexError),
        (MegaNumericError, FloatingPointError),
    ],
)
def test_errors_are_what_they_are_elsewhere_too(kind: type[Exception], built_in: type[Exception]) -> None:
    error = kind("a value must be so, but is not.")
    assert isinstance(error, mega_pl.MegaError)
    assert isinstance(error, built_in)
    assert str(error) == "a value must be so, but is not."  # a KeyError's would stand in quotes


def test_a_message_that_quotes_another_s_lines_is_one_line() -> None:
    assert str(MegaKeyError("there is no 'me/x': 404\nTry again.")) == "there is no 'me/x': 404 Try again."


def test_a_long_value_does_not_flood_the_message() -> None:
    text = str(MegaValueError(f"`prompt` must be short, but got {'x' * 10**6!r}; shorten it."))
    assert len(text) < 1000
    assert text.startswith("`prompt` must be short")
    assert text.endswith("; shorten it.")
