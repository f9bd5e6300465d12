"""What both forms of RippleEdits' Popular split need: its relations as clozes, and its conditions rebuilt.

RippleEdits (arXiv:2307.12976) writes every prompt from one cloze a relation, and every two-hop prompt by putting a
noun phrase of the first relation into the cloze of the second. Copies of the data that lack condition queries, or
labels, can therefore be completed without asking Wikidata.
"""

import re
from typing import NamedTuple

from mega_pl.edits.request import SLOT, Query, RippleAxis
from mega_pl.functional.text import between, canonical, find_all, replace_all

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

IDIOMS = {
    "maternal grandmother": ("MOTHER", "MOTHER"),
    "maternal grandfather": ("MOTHER", "FATHER"),
    "maternal uncle": ("MOTHER", "BROTHER"),
    "maternal aunt": ("MOTHER", "SISTER"),
    "paternal grandmother": ("FATHER", "MOTHER"),
    "paternal grandfather": ("FATHER", "FATHER"),
    "paternal uncle": ("FATHER", "BROTHER"),
    "paternal aunt": ("FATHER", "SISTER"),
    "mother in law": ("SPOUSE", "MOTHER"),
    "father in law": ("SPOUSE", "FATHER"),
    "brother in law": ("SPOUSE", "BROTHER"),
    "sister in law": ("SPOUSE", "SISTER"),
    "siblings in law": ("SPOUSE", "SIBLING"),
}
"""Two-hop questions that name both relations in one: the mother of a mother is a maternal grandmother."""

_FREE = {
    "SPOUSE": "SIBLING",
    "SIBLING": "SIBLING",
    "FOLLOWS": "FOLLOWED_BY",
    "FOLLOWED_BY": "FOLLOWED_BY",
    "MOTHER": "CHILD",
    "FATHER": "CHILD",
}
"""What Logical_Generalization asks of the new object of a relation without any condition, in the benchmark's code."""

_IRREGULAR = {
    "COUNTRY": "the country {} is associated with",
    "STEPFATHER": "the step father of {}",
    "STEPMOTHER": "the step mother of {}",
}


class Edited(NamedTuple):
    """The parts of an edit that its tests are read against."""

    template: str
    subject: str
    target_new: str

    @property
    def relation(self) -> str:
        """RippleEdits' name of the relation; empty if the template is none of its clozes."""
        return next((name for name, (_, cloze) in CLOZES.items() if canonical(cloze) == canonical(self.template)), "")


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
    question = canonical(filled)
    for identifier, cloze in CLOZES.values():
        if canonical(cloze.replace(SLOT, subject)) == question:
            return identifier, cloze
    return "", ""


def split_on(template: str, text: str) -> str | None:
    """What stands for ``{}`` in a text made from this template, or None."""
    before, after = template.split(SLOT)
    return between(text, before, after)


def is_first_hop(prompt: str, edited: Edited) -> bool:
    """Whether a two-hop prompt goes through the edited fact first (Compositionality_I), not last (_II)."""
    phrase = PHRASES.get(edited.template, SLOT).replace(SLOT, edited.subject)
    of_subject = bool(find_all(prompt, edited.subject)) and split_on(edited.template, prompt) is None
    return bool(find_all(prompt, phrase)) or of_subject


def conditions_of(axis: RippleAxis, query: Query, edited: Edited) -> tuple[Query, ...] | None:
    """What RippleEdits asks of the bare model before this test query, for copies that leave it out.

    Args:
        axis: The test's list.
        query: Its first query.
        edited: The edit.

    Returns:
        The conditions, which may be none, or None where no rule tells them.
    """
    if axis == "Logical_Generalization":
        return _logical(query, edited)
    hops = {"Compositionality_I": _first_hop, "Compositionality_II": _second_hop}
    condition = hops[axis](query, edited) if axis in hops else query
    return (condition,) if condition else None


def _first_hop(query: Query, edited: Edited) -> Query | None:
    """The second hop asked of the new object: "the currency in the country of X" -> "the currency in Syria"."""
    first, second, other = _idiom(query.prompt)
    if first and first == edited.relation and canonical(other) == canonical(edited.subject):
        return Query(prompt=_ask(second, edited.target_new), answers=query.answers)
    phrase = PHRASES.get(edited.template, "").replace(SLOT, edited.subject)
    if not find_all(query.prompt, phrase):
        return None
    return Query(prompt=replace_all(query.prompt, phrase, edited.target_new), answers=query.answers)


def _second_hop(query: Query, edited: Edited) -> Query | None:
    """The first hop asked by itself: "the gender of the spouse of X" -> "The name of the spouse of X", the subject."""
    subject = ((edited.subject,),)
    first, second, other = _idiom(query.prompt)
    if first and second == edited.relation:
        return Query(prompt=_ask(first, other), answers=subject)
    inner = split_on(edited.template, query.prompt)
    for cloze, phrase in PHRASES.items():
        name = split_on(phrase, inner) if inner else None
        if name and name.strip():  # the published file has a few questions about nobody
            return Query(prompt=cloze.replace(SLOT, name), answers=subject)
    return None


def _logical(query: Query, edited: Edited) -> tuple[Query, ...] | None:
    """A country's continent asked of the new country; nothing where the new fact alone implies the answer."""
    if edited.relation in ("COUNTRY", "CAPITAL_OF") and find_all(query.prompt, edited.subject):
        prompt = query.prompt.replace("anthem that is most likely to be performed in", "anthem of")
        return (Query(prompt=replace_all(prompt, edited.subject, edited.target_new), answers=query.answers),)
    next_hop = _ask(_FREE[edited.relation], edited.target_new) if edited.relation in _FREE else ""
    free = canonical(query.prompt) == canonical(next_hop)
    return () if free or query.prompt.endswith(" still alive?") else None


def _idiom(prompt: str) -> tuple[str, str, str]:
    """The two relations that a question names as one, and whom it asks about; empty for any other question."""
    match = re.fullmatch(r"The name of the (.+?) of (.+) (?:is|are)", prompt)
    return (*IDIOMS[match[1]], match[2]) if match and match[1] in IDIOMS else ("", "", "")


def _ask(relation: str, name: str) -> str:
    return CLOZES[relation][1].replace(SLOT, name)
