"""Files of records: kinds, marks between joined files, what is broken in them."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest

from mega_pl.data import Cases, DataFile, add, read
from mega_pl.data.files import read_values

EDIT = {"edit_id": 1, "prompt": "{} lives in", "subject": "Ada", "target_new": "Bern", "target_true": "Rome"}


def lines(*ids: Any) -> str:
    return "".join(json.dumps({**EDIT, "edit_id": name}) + "\n" for name in ids)


def save(folder: Path, data: str | bytes, name: str = "edits.jsonl") -> Path:
    path = folder / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def ids(cases: Cases) -> list[str]:
    return [case.request.edit_id for case in cases]


@pytest.mark.parametrize("text", [lines(1, 2), f"[{lines(1)},{lines(2)}]"])
def test_files_packed_by_gzip_are_read(tmp_path: Path, text: str) -> None:
    assert ids(read(save(tmp_path, gzip.compress(text.encode()), "edits.jsonl.gz"))) == ["1", "2"]
    assert ids(read(save(tmp_path, gzip.compress(text.encode()), "edits.jsonl"))) == ["1", "2"]


def test_a_packed_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, gzip.compress(lines(*range(99)).encode())[:-20])
    with pytest.raises(ValueError, match=rf"^{path}: the file must be readable, but got .*; get it anew\.$"):
        read(path)


def zipped(text: str) -> bytes:
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
        archive.writestr("edits.jsonl", text)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (lines(1).encode("utf-16"), "in UTF-16"),
        (lines(1).encode("utf-16-le"), "in UTF-16"),
        (f"[{lines(1)}]".encode("utf-16-le"), "in UTF-16"),
        (lines(1).encode("utf-16-be"), "in UTF-16 or no text"),
        (lines(1).encode("utf-32"), "in UTF-32"),
        (zipped(lines(1)), "a zip archive"),
        (gzip.compress(zipped(lines(1))), "a zip archive"),
        (bz2.compress(lines(1).encode()), "packed by bzip2"),
        (lzma.compress(lines(1).encode()), "packed by xz"),
        (pickle.dumps(EDIT), "a pickle"),
        (b"\n<!DOCTYPE html><html>Not found</html>", "a page of HTML or XML"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "a pointer of Git LFS, not yet the file itself",
        ),
    ],
)
def test_files_of_another_kind_are_named(tmp_path: Path, data: bytes, kind: str) -> None:
    path = save(tmp_path, data)
    message = f"{path}: the file must be JSON in UTF-8, but is {kind}; convert it."
    for on_bad in ("raise", "skip"):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            read(path, on_bad=on_bad)


def test_a_folder_or_nothing_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=rf"^data must come from a file, but '{tmp_path}' is a folder; name a file in it"
    ):
        read(tmp_path)
    with pytest.raises(ValueError, match=r"^data must come from a file, but there is no '.*missing'\.$"):
        add([], DataFile(tmp_path / "missing", "aliases"))


@pytest.mark.parametrize(
    "text",
    [
        f"\ufeff{lines(1)}\ufeff{lines(2)}",
        f"\ufeff{lines(1).strip()}\ufeff{lines(2)}",
        f"\ufeff[{lines(1)}]\n\ufeff[{lines(2)}]",
        f"\ufeff{lines(1)}\ufeff\n\ufeff{lines(2)}\ufeff",
    ],
)
def test_marks_between_joined_files_do_no_harm(tmp_path: Path, text: str) -> None:
    assert ids(read(save(tmp_path, text))) == ["1", "2"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_end_of_line_is_one(tmp_path: Path, end: str) -> None:
    assert ids(read(save(tmp_path, lines(1, 2).replace("\n", end)))) == ["1", "2"]


BROKEN = ['{"edit_id": 2, "prompt"', "{oops}", '{"edit_id": 2}}', "[" * 100_000]


@pytest.mark.parametrize("line", BROKEN)
def test_a_broken_line_is_refused_or_left_out(tmp_path: Path, line: str) -> None:
    path = save(tmp_path, f"{lines(1)}{line}\n{lines(3)}")
    message = re.escape(f"{path}, line 2: must be a JSON list of records or one JSON object a line, but ")
    with pytest.raises(ValueError, match=message) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    with pytest.warns(UserWarning, match="Left out 1 of the records; the first was .*line 2: must be") as warned:
        cases = read(path, on_bad="skip")
    assert warned[0].filename == __file__
    assert ids(cases) == ["1", "3"]
    assert cases.refusals == (str(caught.value),)


@pytest.mark.parametrize("rest", [",\n{oops}]", ",", "", ', {"edit_id": '])
def test_a_list_is_read_up_to_where_it_is_broken(tmp_path: Path, rest: str) -> None:
    path = save(tmp_path, f"[{lines(1)},{lines(2)}{rest}")
    message = f"{path}, record 2 and those after it: must be a JSON list of records or one JSON object a line, but"
    with pytest.raises(ValueError, match=re.escape(message)):
        read(path)
    with pytest.warns(UserWarning, match="Left out 1 of the records"):
        cases = read(path, on_bad="skip")
    assert ids(cases) == ["1", "2"]
    assert cases.refusals[0].startswith(message)


@pytest.mark.parametrize("text", [f"{lines(1)}BAD\n{lines(3)}", f"[{lines(1)},BAD,{lines(3)}]"])
def test_an_id_of_too_many_digits_is_refused_or_left_out(tmp_path: Path, text: str) -> None:
    path = save(tmp_path, text.replace("BAD", lines(2).strip().replace("2", "1" * 5000)))
    with pytest.raises(ValueError, match=r"(line 2|record 1): `edit_id` must be an integer of fewer digits, but got"):
        read(path)
    with pytest.warns(UserWarning, match="Left out 1 of the records"):
        assert ids(read(path, on_bad="skip")) == ["1", "3"]


def test_places_count_what_is_left_out(tmp_path: Path) -> None:
    path = save(tmp_path, f"{lines(1)}\n{{oops}}\n{lines(3)}")
    places = [place for place, _ in read_values(path)]
    assert places == ["line 1", "line 3", "line 4"]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"target_new": "Bern\ud834"}, "target_new"),
        ({"edit_id": "\udd1e"}, "edit_id"),
        ({"phrasings": ["{} is in", "{} \ud834 in"]}, "phrasings[1]"),
        ({"implications": [["{} \ud834 in"]]}, "implications[0][0]"),
        ({"locality": [{"prompt": "\ud834", "answers": ["a"]}]}, "locality[0].prompt"),
    ],
)
def test_half_a_surrogate_pair_is_refused_or_left_out(tmp_path: Path, changes: dict[str, object], field: str) -> None:
    path = save(tmp_path, lines(1) + json.dumps({**EDIT, "edit_id": 2, **changes}))
    message = f"{path}, line 2: `{field}` must be whole characters, without half of a surrogate pair, but got "
    with pytest.raises(ValueError, match=f"^{re.escape(message)}") as caught:
        read(path)
    assert str(caught.value).encode()  # can be printed
    with pytest.warns(UserWarning, match="Left out 1 of the records"):
        assert ids(read(path, on_bad="skip")) == ["1"]


def test_a_whole_surrogate_pair_is_a_character(tmp_path: Path) -> None:
    path = save(tmp_path, json.dumps({**EDIT, "target_new": "\U0001d11e"}))
    assert "\\ud834\\udd1e" in path.read_text("utf-8")
    assert read(path)[0].request.target_new == "\U0001d11e"


def test_records_and_phrasings_left_out_are_counted_together(tmp_path: Path) -> None:
    rewrite = {"prompt": "{} lives in", "subject": "Ada", "target_new": {"str": "Bern"}, "target_true": {"str": "Rome"}}
    records = [
        {"case_id": 1, "requested_rewrite": rewrite, "source_list": ["He lives in", "Ada is in"]},
        {"case_id": 2},
    ]
    path = save(tmp_path, json.dumps(records))
    told = "Left out 1 of the records and 1 of the phrasings; the first was .*record 1: "
    with pytest.warns(UserWarning, match=told):
        cases = read(DataFile(path, "counterfact"), on_bad="skip")
    assert len(cases.refusals) == 2
    assert cases[0].request.phrasings == ("{} is in",)
