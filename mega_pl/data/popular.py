"""What both forms of RippleEdits' Popular split need: its relations as clozes, and its conditions rebuilt.

RippleEdits (arXiv:2307.12976) writes every prompt from one cloze a relation, and every two-hop prompt by putting a
noun phrase of the first relation into the cloze of the second. Copies of the data that lack condition queries, or
labels, can therefore be completed without asking Wikidata.
"""

import re
from typing import NamedTuple

CLOZES = {
    "MOTHER": ("P25", "The name of the mother of {} is"),
    "FATHER": ("P22", "The name of the father of {} is"),
    "BROTHER": ("P7", "The name of the brother of {} is"),
    "SISTER": ("P9", "The name of the sister of {} is"),
    "SIBLING": ("P3373", "The names of the siblings of {} are"),
    "SPOUSE": ("P26", "The name of the spouse of {} is"),
    "UNCLE": ("", "The name of the uncle of {} is"),
    "AUNT": ("", "The name of the aunt of {} is"),
    "CHILD": ("P40", "The name of the child of {} is"),
    "NUMBER_OF_CHILDREN": ("P1971", "The number of children {} has is"),
    "SEX_OR_GENDER": ("P21", "The gender of {} is"),
    "PLACE_OF_BIRTH": ("P19", "The place of birth of {} is"),
    "PLACE_OF_DEATH": ("P20", "The place of death of {} is"),
    "PLACE_OF_BURIAL": ("P119", "The place of burial of {} is"),
    "COUNTRY": ("P17", "The name of the country which {} is associated with is"),
    "COUNTRY_OF_CITIZENSHIP": ("P27", "The name of the country of citizenship of {} is"),
    "POSITION_HELD": ("P39", "The name of the position held by {} is"),
    "STEPFATHER": ("P43", "The name of the stepfather of {} is"),
    "STEPMOTHER": ("P44", "The name of the stepmother of {} is"),
    "MEMBER_OF_SPORTS_TEAM": ("P54", "The name of the sports team which {} is a member of is"),
    "ALMA_MATER": ("P69", "The name of the alma mater of {} is"),
    "SEXUAL_ORIENTATION": ("P91", "The sexual orientation of {} is"),
    "OCCUPATION": ("P106", "The occupation of {} is"),
    "EMPLOYER": ("P108", "The name of the employer of {} is"),
    "LEAGUE": ("P118", "The name of the league which {} plays in is"),
    "FIELD_OF_WORK": ("P101", "The name of the field of work of {} is"),
    "NATIVE_LANGUAGE": ("P103", "The mother tongue of {} is"),
    "AWARD_RECEIVED": ("P166", "The name of the award {} won is"),
    "FOLLOWS": ("P155", "{} follows"),
    "FOLLOWED_BY": ("P156", "{} is followed by"),
    "ETHNIC_GROUP": ("P172", "The name of the ethnic group which {} is associated with is"),
    "RELIGION": ("P140", "The name of the religion which {} is associated with is"),
    "EYE_COLOR": ("P1340", "The eye color of {} is"),
    "DATE_OF_BIRTH": ("P569", "The date of birth of {} is"),
    "DATE_OF_DEATH": ("P570", "The date of death of {} is"),
    "HEAD_OF_GOVERNMENT": ("P6", "The name of the head of government of {} is"),
    "HEAD_OF_STATE": ("P35", "The name of the head of state of {} is"),
    "CONTINENT": ("P30", "The name of the continent which {} is part of is"),
    "CAPITAL": ("P36", "The name of the capital city of {} is"),
    "CURRENCY": ("P38", "The name of the currency in {} is"),
    "OFFICIAL_LANGUAGE": ("P37", "The official language of {} is"),
    "ANTHEM": ("P85", "The name of the anthem of {} is"),
    "CAPITAL_OF": ("P1376", "The name of the country which {} is the capital of is"),
    "AUTHOR": ("P50", "The name of the author of {} is"),
    "EDITOR": ("P98", "The name of the editor of {} is"),
    "DIRECTOR": ("P57", "The name of the director of {} is"),
    "SCREENWRITER": ("P58", "The name of the screenwriter of {} is"),
    "CAST_MEMBER": ("P161", "The names of the cast members of {} are"),
    "ARCHITECT": ("P84", "The name of the architect of {} is"),
    "COMPOSER": ("P86", "The name of the composer of {} is"),
    "FOUNDER": ("P112", "The name of the founder of {} is"),
}
"""Wikidata property (empty: none) and cloze of each of RippleEdits' relations."""

_IRREGULAR = {
    "COUNTRY": "the country {} is associated with",
    "STEPFATHER": "the step father of {}",
    "STEPMOTHER": "the step mother of {}",
}

Condition = tuple[str, tuple[str, ...]]
"""A condition query's prompt and answers; ``("", ())`` where there is none."""


class Edited(NamedTuple):
    """The parts of an edit that its tests are read against."""

    template: str
    subject: str
    target_new: str


def _phrase(name: str) -> str:
    """The object as a noun phrase: "The name of the mother of {} is" -> "the mother of {}"."""
    if name in _IRREGULAR:
        return _IRREGULAR[name]
    noun = re.sub(r"^The (names? of )?(the )?", "the ", CLOZES[name][1])
    return re.sub(r" (is|are)$", "", noun)


PHRASES = {cloze: _phrase(name) for name, (_, cloze) in CLOZES.items() if cloze.startswith("The ")}
"""The noun phrase for the object of each cloze that has one."""


def find_cloze(filled: str, subject: str) -> tuple[str, str]:
    """The Wikidata property and the cloze that give this prompt for this subject, or two empty strings."""
    for identifier, cloze in CLOZES.values():
        if cloze.replace("{}", subject) == filled:
            return identifier, cloze
    return "", ""


def split_on(template: str, text: str) -> str | None:
    """What stands for ``{}`` in a text made from this template, or None."""
    before, after = template.split("{}")
    filled = text.startswith(before) and text.endswith(after) and len(text) > len(before) + len(after)
    return text[len(before) : len(text) - len(after)] if filled else None


def is_first_hop(prompt: str, edited: Edited) -> bool:
    """Whether a two-hop prompt goes through the edited fact first (Compositionality_I), not last (_II)."""
    phrase = PHRASES.get(edited.template, "{}").replace("{}", edited.subject)
    return phrase in prompt or (edited.subject in prompt and split_on(edited.template, prompt) is None)


def condition_of_first_hop(prompt: str, answers: tuple[str, ...], edited: Edited) -> Condition:
    """The second hop asked of the new object: "the currency in the country of X" -> "the currency in Syria"."""
    phrase = PHRASES.get(edited.template, "").replace("{}", edited.subject)
    if not phrase or phrase not in prompt:
        return "", ()
    return prompt.replace(phrase, edited.target_new), answers


def condition_of_second_hop(prompt: str, edited: Edited) -> Condition:
    """The first hop asked by itself: "the gender of the spouse of X" -> "The name of the spouse of X", the subject."""
    inner = split_on(edited.template, prompt)
    for cloze, phrase in PHRASES.items():
        other = split_on(phrase, inner) if inner else None
        if other:
            return cloze.replace("{}", other), (edited.subject,)
    return "", ()
