"""A requested edit and the prompts that judge it.

Readers and callers build these; malformed input is refused here and nowhere later.
"""

import re
import unicodedata
from dataclasses import dataclass
from typing import Literal, get_args

from mega_pl.edits.checks import check_text, check_texts, check_tuple, check_type
from mega_pl.errors import MegaValueError
from mega_pl.functional.text import canonical

SLOT = "{}"

RippleAxis = Literal[
    "Relation_Specificity",
    "Logical_Generalization",
    "Subject_Aliasing",
    "Compositionality_I",
    "Compositionality_II",
    "Forgetfulness",
]
"""The six lists of tests of RippleEdits (arXiv:2307.12976), as its files spell them."""


def _check_templates(name: str, value: object) -> tuple[str, ...]:
    templates = check_texts(name, value)
    for template in templates:
        if template.count(SLOT) != 1:
            raise MegaValueError(f"{name} must hold exactly one {SLOT} for the subject, but got {template!r}.")
    return templates


def _check_id(value: object) -> str:
    """Give a name that is one line, and that nobody can take for a way out of a folder."""
    text = check_text("`edit_id`", value)
    if ".." in re.split(r"[/\\]", text) or text[0] in "/\\~" or not text.isprintable():
        raise MegaValueError(f"`edit_id` must be printable and no way out of a folder, but got {text!r}; rename it.")
    return text


@dataclass(frozen=True, kw_only=True)
class EditRequest:
    """One fact to be changed, with whatever may be used to fit the change.

    White space around the texts is dropped: answers follow a prompt after exactly one space. Else they are kept as they
    are written, and compared as `canonical` in `mega_pl.functional.text` has them.

    Args:
        prompt: Template with one `{}` for the subject, to be continued by the object.
        subject: What the fact is about.
        target_new: Object that the edited model should give.
        target_true: Object that the model gives before.
        relation: Name of the relation, for example a Wikidata id; empty if unknown.
        phrasings: Templates with one `{}` for the same fact.
        implications: Questions about the subject whose answers change with the edit, each a tuple of templates.
        contrasts: Questions about the subject that the edit must leave alone, each a tuple of templates.
        aliases: Other names of the subject; the subject's own and repeated ones are dropped.
        edit_id: Name of the edit, unique in a bank; made from the prompt and the subject where it is left out.

    Raises:
        TypeError: A text is not a str, or a group of texts not a tuple of them.
        ValueError: A text is blank, a template has not exactly one `{}`, or both targets are one text.

    Example:
        >>> from dataclasses import replace
        >>> request = EditRequest(
        ...     edit_id="0", prompt="{} plays the", subject="Toko Yasuda", target_new="piano", target_true="guitar"
        ... )
        >>> request.filled
        'Toko Yasuda plays the'
        >>> replace(request, edit_id="").edit_id
        'toko-yasuda-plays-the'
    """

    prompt: str
    subject: str
    target_new: str
    target_true: str
    relation: str = ""
    phrasings: tuple[str, ...] = ()
    implications: tuple[tuple[str, ...], ...] = ()
    contrasts: tuple[tuple[str, ...], ...] = ()
    aliases: tuple[str, ...] = ()
    edit_id: str = ""

    def __post_init__(self) -> None:
        if self.edit_id == "":
            filled = check_text("`prompt`", self.prompt).replace(SLOT, check_text("`subject`", self.subject))
            words = re.findall(r"\w+", unicodedata.normalize("NFC", canonical(filled)))
            object.__setattr__(self, "edit_id", "-".join(words))
        owner = f"of edit {_check_id(self.edit_id)!r}"
        for name in ("edit_id", "prompt", "subject", "target_new", "target_true"):
            object.__setattr__(self, name, check_text(f"`{name}` {owner}", getattr(self, name)))
        check_type(f"`relation` {owner}", self.relation, str)
        _check_templates(f"`prompt` {owner}", (self.prompt,))
        object.__setattr__(self, "phrasings", _check_templates(f"`phrasings` {owner}", self.phrasings))
        names = dict.fromkeys(check_texts(f"`aliases` {owner}", self.aliases))
        object.__setattr__(self, "aliases", tuple(name for name in names if name != self.subject))
        for name in ("implications", "contrasts"):
            given = check_tuple(f"`{name}` {owner}", getattr(self, name), object)
            groups = tuple(_check_templates(f"`{name}` {owner}", group) for group in given)
            if not all(groups):
                raise MegaValueError(f"`{name}` {owner} must give each question a phrasing, but one has none.")
            object.__setattr__(self, name, groups)
        if canonical(self.target_new) == canonical(self.target_true):
            same = self.target_new == self.target_true
            spelt = "" if same else f", also spelt {self.target_true!a}; case, apostrophes, spaces and NFD do not count"
            raise MegaValueError(
                f"`target_new` {owner} must differ from `target_true`, but both are {self.target_new!r}{spelt}."
            )

    @property
    def filled(self) -> str:
        """The prompt with its subject."""
        return self.prompt.replace(SLOT, self.subject)


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One evaluation prompt with the answers that count as right.

    Args:
        prompt: Filled prompt.
        answers: The right answer, then its aliases.
        condition_prompt: Filled prompt that a model must get right for the probe to count; empty if there is none.
        condition_answers: Right answers to it, empty if and only if `condition_prompt` is.

    Raises:
        TypeError: A text is not a str, or a group of texts not a tuple of them.
        ValueError: A text is blank, there is no answer, or a condition lacks its prompt or its answers.
    """

    prompt: str
    answers: tuple[str, ...]
    condition_prompt: str = ""
    condition_answers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_text("`prompt`", self.prompt)
        check_type(f"`condition_prompt` of probe {self.prompt!r}", self.condition_prompt, str)
        if not check_texts(f"`answers` of probe {self.prompt!r}", self.answers):
            raise MegaValueError(f"`answers` of probe {self.prompt!r} must hold at least one answer, but got none.")
        check_texts(f"`condition_answers` of probe {self.prompt!r}", self.condition_answers)
        if bool(self.condition_prompt.strip()) != bool(self.condition_answers):
            raise MegaValueError(
                f"`condition_prompt` and `condition_answers` of probe {self.prompt!r} must be given together or not "
                f"at all, but got {self.condition_prompt!r} and {self.condition_answers!r}."
            )


@dataclass(frozen=True, kw_only=True)
class Query:
    """One question of RippleEdits with everything that its answer must name.

    Args:
        prompt: Filled prompt.
        answers: The entities that the answer names, each its value and then its aliases.

    Raises:
        TypeError: A text is not a str, or a group of texts not a tuple of them.
        ValueError: A text is blank, or there is no entity or one without a name.
    """

    prompt: str
    answers: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        check_text("`prompt`", self.prompt)
        name = f"`answers` of query {self.prompt!r}"
        groups = [check_texts(name, group) for group in check_tuple(name, self.answers, object)]
        if not groups or not all(groups):
            raise MegaValueError(f"{name} must give every entity a name, but got {groups}.")


@dataclass(frozen=True, kw_only=True)
class RippleTest:
    """One test of RippleEdits: questions asked after the edit where the bare model knows the conditions.

    Args:
        axis: Key of the test's list in the benchmark's files.
        queries: What is asked.
        conditions: What the bare model has to answer for the test to count; may be empty.
        every: Whether all queries must be answered, or any of them.
        filterable: Whether `conditions` is complete; not where a copy of the data lost some that no rule rebuilds.

    Raises:
        TypeError: If queries or conditions are not a tuple of them.
        ValueError: If the axis is unknown, or there is no query.
    """

    axis: RippleAxis
    queries: tuple[Query, ...]
    conditions: tuple[Query, ...] = ()
    every: bool = False
    filterable: bool = True

    def __post_init__(self) -> None:
        if self.axis not in get_args(RippleAxis):
            raise MegaValueError(f"`axis` must be one of {', '.join(get_args(RippleAxis))}, but got {self.axis!r}.")
        for name in ("queries", "conditions"):
            check_tuple(f"`{name}` of a test of {self.axis}", getattr(self, name), Query)
        if not self.queries:
            raise MegaValueError(f"`queries` of a test of {self.axis} must hold at least one query, but got none.")


@dataclass(frozen=True, kw_only=True)
class EditCase:
    """An edit request with the prompts that judge it, none of which may be used to fit it.

    Args:
        request: The edit.
        paraphrase_prompts: Filled prompts for the same fact.
        neighborhood_prompts: Filled prompts about other subjects whose object is `target_true`.
        relation_specificity: Facts about the same subject that the edit leaves as they are.
        compositionality_1: Two-hop questions that start with the edited fact.
        compositionality_2: Two-hop questions that end with the edited fact.
        subject_aliasing: The edited fact under other names of the subject.
        attribute_prompts: Filled prompts about other subjects whose object is `target_new`.
        generation_prompts: Filled prompts about the subject, to be continued freely.
        locality: Questions whose answers the edit must not change, each with its answer (EasyEdit's locality).
        portability: Questions whose answers follow from the edited fact (EasyEdit's portability).
        ripple: The tests of RippleEdits, complete.

    Raises:
        TypeError: The request, a prompt, a probe or a test is of another type, or several are not a tuple.
        ValueError: A prompt is blank.
    """

    request: EditRequest
    paraphrase_prompts: tuple[str, ...] = ()
    neighborhood_prompts: tuple[str, ...] = ()
    relation_specificity: tuple[Probe, ...] = ()
    compositionality_1: tuple[Probe, ...] = ()
    compositionality_2: tuple[Probe, ...] = ()
    subject_aliasing: tuple[Probe, ...] = ()
    attribute_prompts: tuple[str, ...] = ()
    generation_prompts: tuple[str, ...] = ()
    locality: tuple[Probe, ...] = ()
    portability: tuple[Probe, ...] = ()
    ripple: tuple[RippleTest, ...] = ()

    def __post_init__(self) -> None:
        check_type("`request` of a case", self.request, EditRequest)
        for name in ("paraphrase_prompts", "neighborhood_prompts", "attribute_prompts", "generation_prompts"):
            check_texts(f"`{name}` of edit {self.request.edit_id!r}", getattr(self, name))
        hops = ("relation_specificity", "compositionality_1", "compositionality_2")
        for name in (*hops, "subject_aliasing", "locality", "portability"):
            check_tuple(f"`{name}` of edit {self.request.edit_id!r}", getattr(self, name), Probe)
        check_tuple(f"`ripple` of edit {self.request.edit_id!r}", self.ripple, RippleTest)
