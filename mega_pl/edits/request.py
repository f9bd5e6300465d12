"""What an edit asks for, and the prompts that test it."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class EditRequest:
    """One fact to change, in CounterFact's words.

    Args:
        edit_id: Name of the edit, unique in a bank.
        prompt: Template with one ``{}`` for the subject, ending right before the object.
        subject: What the fact is about.
        target_new: The object that the model shall give.
        target_true: The object that it gives now.
        relation: Name or Wikidata property of the relation.
        phrasings: Other templates with one ``{}`` for the same fact, free for fitting.
        implications: Filled prompts whose answers follow from the fact, free for fitting.
        contrasts: Templates with one ``{}`` that ask of the subject what the edit must leave alone.

    Raises:
        ValueError: If a text is empty, a template has not exactly one ``{}``, or the targets are equal.
    """

    edit_id: str
    prompt: str
    subject: str
    target_new: str
    target_true: str
    relation: str = ""
    phrasings: tuple[str, ...] = ()
    implications: tuple[str, ...] = ()
    contrasts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what cannot be edited."""
        for name in ("edit_id", "subject", "target_new", "target_true"):
            if not getattr(self, name).strip():
                raise ValueError(f"`{name}` must not be empty, but got {getattr(self, name)!r}.")
        for name, templates in (("prompt", (self.prompt,)), ("phrasings", self.phrasings), ("contrasts", self.contrasts)):
            for template in templates:
                if template.count("{}") != 1:
                    raise ValueError(f"`{name}` must have exactly one '{{}}' for the subject, but got {template!r}.")
        if self.target_new.strip() == self.target_true.strip():
            raise ValueError(f"`target_new` must differ from `target_true`, but both are {self.target_new!r}.")

    @property
    def filled(self) -> str:
        """The prompt with its subject."""
        return self.prompt.replace("{}", self.subject)


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A question that tests an edit, and the question that tells whether the model can be asked it.

    Args:
        prompt: The question.
        answers: The right answer after the edit, then its aliases.
        condition_prompt: A question that the bare model must answer for the test to count; empty for none.
        condition_answers: Its right answers.
    """

    prompt: str
    answers: tuple[str, ...]
    condition_prompt: str = ""
    condition_answers: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class EditCase:
    """An edit and the prompts of its evaluation, none of which is ever used to fit it.

    Args:
        request: The edit.
        paraphrase_prompts: Other ways to ask for the fact.
        neighborhood_prompts: The same question about other subjects with the true object.
        relation_specificity: Other questions about the subject.
        compositionality_1: Questions that follow from the new object.
        compositionality_2: The fact asked through another subject.
        subject_aliasing: The fact asked by another name of the subject.
    """

    request: EditRequest
    paraphrase_prompts: tuple[str, ...] = ()
    neighborhood_prompts: tuple[str, ...] = ()
    relation_specificity: tuple[Probe, ...] = ()
    compositionality_1: tuple[Probe, ...] = ()
    compositionality_2: tuple[Probe, ...] = ()
    subject_aliasing: tuple[Probe, ...] = ()

