"""What all readers share: files, places in messages, skipping, templates."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from mega_pl.data.records import Cases, Record, read_cases, read_each, to_template, to_templates
from mega_pl.edits.request import EditCase, EditRequest

LINE = '{"id": %d, "new": "%s"}'


def parse(record: Record, index: int) -> EditCase:
    return EditCase(
        request=EditRequest(
            edit_id=record.identifier("id", default=index),
            prompt="{} lives in",
            subject="Ada",
            target_new=record.text("new"),
            target_true="Rome",
        )
    )


def save(folder: Path, text: str) -> Path:
    path = folder / "edits.jsonl"
    path.write_text(text, encoding="utf-8")
    return path


def test_lines_and_a_list_read_alike(tmp_path: Path) -> None:
    lines = read_cases(save(tmp_path, f"{LINE % (1, 'Bern')}\n\n{LINE % (2, 'Oslo')}\r\n"), parse, "raise")
    listed = read_cases(save(tmp_path, f"[{LINE % (1, 'Bern')},\n {LINE % (2, 'Oslo')}]"), parse, "raise")
    assert [case.request.target_new for case in lines] == ["Bern", "Oslo"]
    assert lines == listed


def test_a_byte_order_mark_and_a_line_separator_inside_a_string_do_no_harm(tmp_path: Path) -> None:
    cases = read_cases(save(tmp_path, "\ufeff" + LINE % (1, "Bern\u2028(CH)")), parse, "raise")
    assert cases[0].request.target_new == "Bern\u2028(CH)"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must hold at least one record, but it is empty"),
        (" \n", "must hold at least one record, but it is empty"),
        ("[]", "must hold at least one record, but it is empty"),
        ("[1", "must be a JSON list of records or one JSON object a line"),
        (f"{LINE % (1, 'Bern')}\n{{oops}}", "line 2: must be a JSON list of records or one JSON object a line"),
        ("[3]", "record 0: a record must be a JSON object, but got 3."),
        ('{"id": 1}', "line 1: `new` must be a string, but is missing."),
        ('{"id": 1, "new": ["Bern"]}', "line 1: `new` must be a string, but got ['Bern']."),
        ('{"id": true, "new": "Bern"}', "line 1: `id` must be an integer or a string, but got True."),
        (f"{LINE % (1, 'Bern')}\n{LINE % (1, 'Oslo')}", "line 2: the edit id must be unique in a file, but '1'"),
        (LINE % (1, "Rome"), "line 1: "),  # refused by EditRequest itself: both objects are the same
    ],
)
def test_refusals_are_one_line_with_file_and_place(tmp_path: Path, text: str, message: str) -> None:
    path = save(tmp_path, text)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read_cases(path, parse, "raise")
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_file_in_another_encoding_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "latin.jsonl"
    path.write_bytes((LINE % (1, "Zürich")).encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin.jsonl: the file must be UTF-8, but .* at byte \d+"):
        read_cases(path, parse, "raise")


def test_skipping_leaves_out_bad_records_and_warns_once(tmp_path: Path) -> None:
    path = save(tmp_path, "\n".join([LINE % (1, "Bern"), '{"id": 2}', LINE % (1, "Oslo"), LINE % (3, "Lima")]))
    with pytest.warns(UserWarning, match=r"Left out 2 of the records; the first was .*line 2: `new`") as caught:
        cases = read_cases(path, parse, "skip")
    assert len(caught) == 1
    assert [case.request.target_new for case in cases] == ["Bern", "Lima"]
    assert [refusal.removeprefix(f"{path}, ")[:8] for refusal in cases.refusals] == ["line 2: ", "line 3: "]


def test_nothing_is_refused_of_a_good_file(tmp_path: Path) -> None:
    cases = read_cases(save(tmp_path, LINE % (1, "Bern")), parse, "skip")
    assert (len(cases), cases.refusals) == (1, ())
    assert cases == list(cases) == Cases(cases, ["something"])


def test_anything_can_be_made_of_a_record(tmp_path: Path) -> None:
    path = save(tmp_path, "\n".join([LINE % (1, "Bern"), LINE % (2, "Oslo")]))
    assert read_each(path, lambda record, index: (index, record.text("new")), "raise") == (
        [(0, "Bern"), (1, "Oslo")],
        [],
    )


def test_an_unknown_on_bad_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`on_bad` must be one of raise, skip, but got 'ignore'"):
        read_cases(save(tmp_path, LINE % (1, "Bern")), parse, "ignore")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda record: record.texts("a"), "`a[1]` must be a string that is not blank, but got ' '."),
        (lambda record: record.texts("b"), "`b` must be a list of strings, but got 'x'."),
        (lambda record: record.groups("g"), "`g[1]` must be a list of strings, but got 3."),
        (lambda record: record.children("b"), "`b` must be a list, but got 'x'."),
        (lambda record: record.child("b"), "`b` must be a JSON object, but got 'x'."),
        (lambda record: record.child("c").text("d"), "`c.d` must be a string, but got 1."),
        (lambda record: record.child("c").children("e")[1].text("f"), "`c.e[1].f` must be a string, but is missing."),
        (lambda record: record.child("p", "c").text("d"), "`c.d` must be a string, but got 1."),
        (lambda record: record.children("p", "b"), "`b` must be a list, but got 'x'."),
        (lambda record: record.first_texts("p", "a"), "`a[1]` must be a string that is not blank, but got ' '."),
        (lambda record: record.first_texts("c"), "`c` must be a list of strings, but got "),
        (lambda record: record.flag("b"), "`b` must be true or false, but got 'x'."),
        (lambda record: record.text("p", "q"), "`p or q` must be a string, but is missing."),
    ],
)
def test_fields_are_named_with_their_path(read: Callable[[Record], object], message: str) -> None:
    record = Record({"a": ["x", " "], "b": "x", "g": ["x", 3], "c": {"d": 1, "e": [{"f": "y"}, {}]}})
    with pytest.raises(ValueError, match=re.escape(message)):
        read(record)


def test_absent_and_null_fields_are_empty() -> None:
    record = Record({"none": None})
    for name in ("none", "absent"):
        assert record.texts(name) == ()
        assert record.children(name) == []
        assert record.groups(name) == []
        assert record.child(name).names() == set()
        assert record.first_texts(name) == ()
        assert record.flag(name) is False
        assert record.text(name, default="x") == "x"


def test_one_string_stands_for_a_list_of_it() -> None:
    record = Record({"one": " a ", "many": ["a", "b"], "yes": True})
    assert record.first_texts("none", "one") == ("a",)
    assert record.first_texts("many", "one") == ("a", "b")
    assert record.flag("yes") is True


@pytest.mark.parametrize(
    ("text", "subject", "template"),
    [
        ("Iran borders", "Iran", "{} borders"),
        ("Iran's capital is", "Iran", "{}'s capital is"),
        ("The Iranian capital is", "Iran", None),
        ("Iran, oh Iran, is in", "Iran", None),
        ("Iran's Iranian people speak", "Iran", "{}'s Iranian people speak"),
        ("The capital of {} is", "Iran", "The capital of {} is"),
        ("{} and {} border Iran", "Iran", None),
        ("C++ (the language) was made by", "C++", "{} (the language) was made by"),
        ("日本の首都は", "日本", "{}の首都は"),
        ("the home of Fr\u00e9d\u00e9ric is", "Fre\u0301de\u0301ric", "the home of {} is"),
        ("the home of Fre\u0301de\u0301ric is", "Fr\u00e9d\u00e9ric", "the home of {} is"),
        ("Zoe\u0308 met O\u2019Neill in", "O'Neill", "Zoe\u0308 met {} in"),
        ("The mayor of New\u00a0York is", "New York", "The mayor of {} is"),
        ("The Beatles came from", "the Beatles", "{} came from"),
        ("IRAN borders", "Iran", "{} borders"),
        ("Iran, once IRAN, borders", "Iran", "{}, once IRAN, borders"),
        ("iran, once IRAN, borders", "Iran", None),
        ("Tell us about the US:", "US", "Tell us about the {}:"),
        ("Tell us about it:", "US", None),
        ("The home of Frederic is", "Fr\u00e9d\u00e9ric", None),
    ],
)
def test_templates_need_the_subject_once_as_a_word(text: str, subject: str, template: str | None) -> None:
    assert to_template(text, subject) == template


def test_templates_are_kept_in_order_and_once() -> None:
    assert to_templates(["B of X", "nothing", "A of X", "B of {}"], "X") == ("B of {}", "A of {}")
