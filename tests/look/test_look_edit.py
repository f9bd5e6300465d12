"""Suggestions, fits and checks of the page are the package's own."""

from __future__ import annotations

import warnings

import pytest

from mega_pl import EditBank, EditRequest
from mega_pl.backbone import Backbone
from mega_pl.errors import MegaValueError
from mega_pl.look.edit import (
    check,
    counted_passes,
    doubts,
    lines,
    mend,
    put,
    replaced,
    rows,
    suggest,
    templated,
    with_more,
)
from tests.look.capitals import capital


def test_suggestions(lab: Backbone) -> None:
    found = suggest(lab, "Marie Curie", "", "P19")
    assert found.target_true == "Warsaw"
    assert found.prompt not in found.phrasings
    assert all(template.count("{}") == 1 for template in (found.prompt, *found.phrasings))
    assert "Maria Sklodowska" in found.aliases
    assert suggest(lab, "France", "", "P36").target_true == "Paris"  # what the model says after most wordings
    assert suggest(lab, "France", "The capital of {} is", "").phrasings == ()
    for subject, prompt in ((" ", "The capital of {} is"), ("France", ""), ("France", "no slot")):
        with pytest.raises(MegaValueError):
            suggest(lab, subject, prompt, "")


def test_an_edit_is_fitted_added_and_replaced(lab: Backbone, bank: EditBank, monkeypatch: pytest.MonkeyPatch) -> None:
    alone, notes = put(lab, None, capital("Spain", "Madrid", "Rome"))
    assert (alone.ids, notes) == (("spain",), [])
    grown, _ = put(lab, bank, capital("Spain", "Madrid", "Rome"))
    assert grown.ids == ("france", "norway", "spain")
    again, _ = put(lab, grown, capital("Spain", "Madrid", "Oslo"))
    assert again["spain"].target_new == "Oslo"
    later = capital("Spain", "Madrid", "Paris", edit_id="later")
    assert replaced(grown, later) == ["spain"]
    won, notes = put(lab, grown, later)
    assert won.ids == ("france", "norway", "later")
    assert "'later' takes the place of 'spain'" in notes[0]

    def add(*_: object) -> EditBank:
        warnings.warn("unclosed", ResourceWarning, stacklevel=2)
        return grown

    monkeypatch.setattr(EditBank, "add", add)
    assert put(lab, bank, later)[1] == []  # what others warn of is not the edit's
    assert replaced(None, later) == replaced(bank, later) == []
    assert replaced(bank, capital("France", "Paris", "Berlin")) == ["france"]


def test_checks_ask_the_edit_its_wordings_and_what_is_next_to_it(lab: Backbone, bank: EditBank) -> None:
    made, _ = put(lab, bank, with_more(bank["france"], alias="Gaul"))
    found = check(lab, made, "france")
    assert (found[0].kind, found[0].question, found[0].fired) == ("the edit's prompt", bank["france"].filled, "france")
    assert (found[0].bare.rstrip("."), found[0].edited.rstrip("."), found[0].good) == ("Paris", "Berlin", True)
    kinds = {c.kind.partition(":")[0] for c in found}
    assert kinds == {"the edit's prompt", "another wording", "another name", "next to it"}
    for c in found:
        if c.kind.startswith("next to it"):
            assert c.good == (c.fired != "france")
            assert c.fired or c.bare == c.edited
        else:
            assert c.good is not True or c.fired == "france"
            assert c.good is not None or not c.bare.startswith("Paris")
            assert c.good is False or c.fired
    assert len(rows(found)) == len(found)
    assert {row[-1] for row in rows(found)} <= {
        "✓",
        "✗",
        "✓ unchanged",
        "✓ another edit",
        "? the model did not know it",
    }


def test_an_alias_and_a_wording_mend_what_did_not_fire(lab: Backbone, bank: EditBank) -> None:
    prompt = "The capital of Gaul is"
    mended, again = mend(lab, bank, "france", alias=" Gaul ")
    assert (again, "Gaul" in mended["france"].aliases) == (["france"], True)
    for one, fired in ((bank, None), (mended, "france")):
        with one.apply(lab) as use:
            lab.generate(prompt, max_new_tokens=1)
            assert use.fired == [fired]
    assert mend(lab, bank, "france", phrasing="Seat of France:")[0]["france"].phrasings[-1] == "Seat of {}:"
    with pytest.raises(MegaValueError, match="exactly one"):
        mend(lab, bank, "france", phrasing="The seat of government is")
    for options in ({"alias": "Gaul"}, {"phrasing": mended["france"].prompt}, {"alias": "France"}):
        with pytest.raises(MegaValueError, match="'france' has it already"):
            mend(lab, mended, "france", **options)


def test_a_name_is_its_subjects(lab: Backbone, bank: EditBank) -> None:
    money = EditRequest(
        prompt="The currency of {} is the", subject="France", target_true="euro", target_new="krone", edit_id="money"
    )
    both, _ = put(lab, bank, money)
    made, again = mend(lab, both, "france", alias="Gaul", phrasing="Seat of Gaul:")
    assert set(again) == {"france", "money"}
    assert all("Gaul" in made[edit].aliases for edit in again)
    assert (made["france"].phrasings[-1], made["money"].phrasings) == ("Seat of {}:", ())
    assert made.requests[made.index("norway")] == bank["norway"]


def test_what_a_person_should_know_is_told(lab: Backbone, bank: EditBank) -> None:
    assert doubts(bank, "france", check(lab, bank, "france")) == []
    made, _ = put(lab, bank, capital("Spain", "Lima", "Rome", relation=""))
    old, relation = doubts(made, "spain", check(lab, made, "spain"))
    assert "The bare model says “Madrid.” there, and not the old object “Lima”." in old
    assert "Without a relation" in relation


def test_templates_take_the_longest_name() -> None:
    names = ("York", "New York", "Big Apple")
    assert templated("In New York there is", *names) == "In {} there is"
    assert templated("{} and York", *names) == "{} and York"
    assert templated("Nowhere", *names) == "Nowhere"


def test_passes_are_counted(lab: Backbone) -> None:
    seen: list[str] = []
    with counted_passes(lab, seen.append):
        lab.generate("The capital of France is", max_new_tokens=3)
    assert [text.split()[0] for text in seen][-1] == str(len(seen))
    assert len(seen) >= 3
    assert lines(" a \n\n b") == ("a", "b")
