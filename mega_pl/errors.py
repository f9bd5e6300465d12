"""What the package raises: each error is of one base class, and of the built-in class that fits."""

HALF = 400
"""Characters of either end of a message that are shown where a value in it is very long."""


class MegaError(Exception):
    """Something that whoever called can mend; its message is one line, with the rule, the value and the way out."""

    def __str__(self) -> str:
        text = str(self.args[0]) if self.args else ""  # a KeyError would put quotes around it
        text = " ".join(text.splitlines())  # what it quotes of other packages' errors may have more lines
        return text if len(text) <= 2 * HALF else f"{text[:HALF]} ... {text[-HALF:]}"


class MegaValueError(MegaError, ValueError):
    """A value that breaks a rule."""


class MegaTypeError(MegaError, TypeError):
    """A value of a wrong type."""


class MegaKeyError(MegaError, KeyError):
    """A name that nothing has."""


class MegaIndexError(MegaError, IndexError):
    """A place that is not there."""


class MegaNumericError(MegaError, FloatingPointError):
    """Numbers that are not finite."""


class MegaFileError(MegaError, OSError):
    """A file that cannot be read or written."""


class MegaRuntimeError(MegaError, RuntimeError):
    """A pass that has gone by what should have acted in it."""
