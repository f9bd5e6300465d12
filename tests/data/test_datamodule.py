import json
import re
from dataclasses import replace

import pytest
import torch.distributed as dist

from mega_pl.data import DataFile
from mega_pl.data.datamodule import DealtBatches, EditDataModule
from mega_pl.data.readers import SOURCES
from mega_pl.data.readers.translations import TranslatedCase
from mega_pl.data.relations import implications, relations
from tests.data.test_wikibigedit import RECORD as WIKIBIGEDIT


def test_batches_hold_every_item_in_order_and_again():
    batches = DealtBatches(range(7), 3)
    assert len(batches) == 3
    assert list(batches) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(batches) == [[0, 1, 2], [3, 4, 5], [6]]


@pytest.mark.parametrize("world", [1, 2, 3, 9])
def test_processes_share_the_items_without_repeating_one(monkeypatch, world):
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: world)
    dealt = []
    for rank in range(world):
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        batches = DealtBatches(range(7), 2)
        own = [item for batch in batches for item in batch]
        assert own == list(range(rank, 7, world))
        assert len(batches) == {1: 4, 2: 2, 3: 2, 9: 1}[world]  # for every process
        dealt += own
    assert sorted(dealt) == list(range(7))


def test_edits_are_read_once_and_dealt_out(edits_file):
    data = EditDataModule(str(edits_file), edits_per_batch=3)
    data.setup("fit")
    assert [r.edit_id for r in data.requests] == ["france", "germany", "darrieux", "italy"]
    assert list(data.train_dataloader()) == [data.requests[:3], data.requests[3:]]
    edits_file.unlink()
    data.setup("validate")
    assert len(data.cases) == 4


def test_every_edit_is_judged_once(edits_file):
    data = EditDataModule(str(edits_file), edits_per_batch=3)
    data.setup("validate")
    for loader in (data.val_dataloader(), data.test_dataloader()):
        assert loader.batches == [data.cases[:3], data.cases[3:]]


def test_the_limit_takes_edits_from_the_front(edits_file):
    data = EditDataModule(str(edits_file), limit=2)
    data.setup("fit")
    assert [r.edit_id for r in data.requests] == ["france", "germany"]


def test_edits_may_be_skipped_at_the_front(edits_file):
    data = EditDataModule(str(edits_file), skip=1, limit=2)
    data.setup("fit")
    assert [request.edit_id for request in data.requests] == ["germany", "darrieux"]
    with pytest.raises(ValueError, match="`skip` must be less than the 4 edits read, but got 4"):
        EditDataModule(str(edits_file), skip=4).setup("fit")
    with pytest.raises(ValueError, match="`skip` must be at least 0, but got -1"):
        EditDataModule(str(edits_file), skip=-1)


def test_files_about_the_same_edits_are_joined(tmp_path, edits_file):
    rewrite: dict[str, object] = {"prompt": "{} is ruled from", "subject": "Italy"}
    rewrite |= {"target_new": {"str": "Paris"}, "target_true": {"str": "Rome"}}
    path = tmp_path / "counterfact.json"
    record = {"case_id": "italy", "requested_rewrite": rewrite, "paraphrase_prompts": ["The capital of Italia is"]}
    path.write_text(json.dumps([record]), encoding="utf-8")
    data = EditDataModule([DataFile(path, "counterfact"), str(edits_file)])
    data.setup("fit")
    assert [r.edit_id for r in data.requests] == ["italy", "france", "germany", "darrieux"]
    italy = data.cases[0]
    assert italy.request.prompt == "{} is ruled from"
    assert italy.request.phrasings == ("{} has its capital in",)
    assert italy.paraphrase_prompts == ("The capital of Italia is",)
    assert len(italy.compositionality_2) == 1


@pytest.mark.parametrize("name", ["limit", "edits_per_batch"])
def test_numbers_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1, but got 0"):
        EditDataModule(**{name: 0})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=f"^`{name}` must be an int, but got str: '3'"):
        EditDataModule(**{name: "3"})  # type: ignore[arg-type]


def test_data_from_nowhere_is_refused(tmp_path):
    with pytest.raises(ValueError, match="data must come from a file, but none is named"):
        EditDataModule().setup("fit")
    with pytest.raises(ValueError, match=r"data must come from a file, but there is no .*missing\.jsonl"):
        EditDataModule(str(tmp_path / "missing.jsonl")).setup("fit")
    with pytest.raises(ValueError, match=r"data must come from a file, but '.*' is a folder; name a file in it"):
        EditDataModule(str(tmp_path)).setup("fit")


def test_a_malformed_record_ends_the_run_or_is_left_out(edits_file):
    edits_file.write_text(edits_file.read_text("utf-8") + '{"edit_id": "x"}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="line 5: `prompt` must be a string"):
        EditDataModule(str(edits_file)).setup("fit")
    data = EditDataModule(str(edits_file), on_bad="skip")
    with pytest.warns(UserWarning, match="Left out 1"):
        data.setup("fit")
    assert len(data.cases) == 4
    assert data.refusals == [f"{edits_file}, line 5: `prompt` must be a string, but is missing."]


@pytest.fixture
def flat_file(tmp_path):
    """Two edits in EasyEdit's schema."""
    towns = (("Italy", "Paris", "Rome"), ("Spain", "Rome", "Madrid"))
    records = [
        {
            "case_id": subject.lower(),
            "prompt": f"The capital of {subject} is",
            "subject": subject,
            "target_new": new,
            "ground_truth": true,
            "rephrase_prompt": f"The government of {subject} sits in",
            "locality_prompt": "The capital of Peru is",
            "locality_ground_truth": "Lima",
        }
        for subject, new, true in towns
    ]
    path = tmp_path / "flat.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def test_files_of_several_formats_are_read_in_their_order(tmp_path, edits_file, flat_file):
    zsre = {"subject": "Ann", "src": "Where was Ann born?", "alt": "Rome", "answers": ["Bern"]}
    rewrite = {"prompt": "{} is in", "subject": "Basel", "target_new": {"str": "Peru"}, "target_true": {"str": "Italy"}}
    mquake = {"case_id": 5, "requested_rewrite": [rewrite], "questions": ["What is said in Basel?"], "new_answer": "si"}
    files = [DataFile(flat_file, "easyedit")]
    for name, record in (("zsre", zsre), ("mquake", mquake)):
        files.append(DataFile(tmp_path / f"{name}.json", name))
        (tmp_path / f"{name}.json").write_text(json.dumps([record]), encoding="utf-8")
    data = EditDataModule([*files, str(edits_file)])
    data.setup("fit")
    assert [r.edit_id for r in data.requests] == ["italy", "spain", "0", "5-0", "france", "germany", "darrieux"]
    assert data.cases[0].locality[0].answers == ("Lima",)
    assert len(data.cases[0].compositionality_2) == 1  # from the line about the same edit
    assert data.refusals == []


def test_portability_and_aliases_are_added_to_the_edits(tmp_path, flat_file):
    asked = [{"case_id": "spain", "portability": {"New Question": "Which river?", "New Answer": "Tiber"}}]
    named = [{"case_id": "italy", "alternative_subject": "Italia"}, {"case_id": "spain"}]
    for name, records in (("asked", asked), ("named", named)):
        (tmp_path / f"{name}.json").write_text(json.dumps(records), encoding="utf-8")
    data = EditDataModule(
        [
            DataFile(tmp_path / "asked.json", "portability"),  # added last, wherever they stand
            DataFile(flat_file, "easyedit"),
            DataFile(tmp_path / "named.json", "aliases"),
        ],
        on_bad="skip",
    )
    with pytest.warns(UserWarning, match="Left out 1"):
        data.setup("fit")
    italy, spain = data.cases
    assert spain.portability[0].prompt == "Which river?"
    assert italy.subject_aliasing[0].prompt == "The capital of Italia is"
    assert italy.request.aliases == ("Italia",)
    assert len(data.refusals) == 1
    with pytest.raises(ValueError, match=r"there is no .*none\.json"):
        EditDataModule([DataFile(flat_file, "easyedit"), DataFile(tmp_path / "none.json", "aliases")]).setup("fit")


def test_names_of_subjects_can_be_kept_from_the_edits(edits_file, edit_lines):
    edit_lines[0] |= {"aliases": ["the French Republic"]}
    edits_file.write_text("".join(json.dumps(line) + "\n" for line in edit_lines), encoding="utf-8")
    kept = EditDataModule(str(edits_file))
    without = EditDataModule(str(edits_file), subject_aliases=False)
    for data in (kept, without):
        data.setup("fit")
    assert kept.requests[0].aliases == ("the French Republic",)
    assert without.requests[0] == replace(kept.requests[0], aliases=())
    assert without.cases[0].subject_aliasing == kept.cases[0].subject_aliasing
    assert without.cases[1:] == kept.cases[1:]


def test_translations_are_added_by_language(tmp_path, flat_file):
    data = EditDataModule(DataFile(flat_file, "easyedit"), limit=2)
    data.setup("fit")
    request = data.requests[0]
    record = {"case_id": request.edit_id, "subject": request.subject, "rephrase": "Where?"}
    english = {**record, "src": "Where?", "old": request.target_true, "alt": request.target_new}
    german = {**record, "src": "Wo?", "rephrase": "Wo denn?", "old": "alt", "alt": "neu"}
    path = tmp_path / "german.json"
    path.write_text(json.dumps([{"en": english, "de": german}]), encoding="utf-8")
    told = EditDataModule(
        [DataFile(flat_file, "easyedit"), DataFile(path, "translations", language="de")],
        limit=2,
        relation_phrasings=True,
    )
    told.setup("fit")
    case = told.cases[0]
    assert isinstance(case, TranslatedCase)
    (translation,) = case.translations
    assert (translation.language, translation.new) == ("de", "neu")


def test_a_published_source_is_fetched_by_name(monkeypatch, flat_file):
    format, source = SOURCES["counterfact_easyedit"]
    monkeypatch.setitem(SOURCES, "counterfact_easyedit", (format, replace(source, file=flat_file.as_uri())))
    data = EditDataModule("counterfact_easyedit")
    data.prepare_data()
    data.setup("fit")
    assert [r.edit_id for r in data.requests] == ["italy", "spain"]
    with pytest.raises(ValueError, match=r"^`format` of 'counterfakt' must be one of .*, but is missing; a published "):
        EditDataModule("counterfakt")


def test_the_object_before_a_new_fact_is_asked_of_a_model_by_its_name(tmp_path):
    path = tmp_path / "new.json"
    path.write_text(json.dumps([WIKIBIGEDIT | {"prompt": "The capital of France is", "subject": "France"}]), "utf-8")
    data = EditDataModule(DataFile(path, "wikibigedit"), ask="lab-gpt2")
    data.setup("fit")
    assert data.requests[0].target_true == "Paris"


def test_phrasings_of_the_relation_are_given_on_demand(edits_file, edit_lines):
    edit_lines[0] |= {"relation": "P36", "paraphrase_prompts": ["The government of France sits in"]}
    edit_lines[3] |= {"relation": "P36"}
    edits_file.write_text("".join(json.dumps(line) + "\n" for line in edit_lines), encoding="utf-8")
    plain = EditDataModule(str(edits_file))
    rich = EditDataModule(str(edits_file), relation_phrasings=True)
    for data in (plain, rich):
        data.setup("fit")
    assert plain.requests[0].phrasings == ("{} has its capital in",)
    bank = [template for template in relations()["P36"].phrasings if template != "The government of {} sits in"]
    assert rich.requests[0].phrasings == ("{} has its capital in", *bank)
    for enriched, one in zip(rich.cases, plain.cases, strict=True):
        assert enriched == replace(one, request=replace(one.request, phrasings=enriched.request.phrasings))
    assert rich.cases[1:3] == plain.cases[1:3]


def test_implications_of_the_relation_are_given_on_demand(edits_file, edit_lines):
    for place in (0, 3):
        edit_lines[place] |= {"relation": "P36"}
    edits_file.write_text("".join(json.dumps(line) + "\n" for line in edit_lines), encoding="utf-8")
    plain = EditDataModule(str(edits_file))
    rich = EditDataModule(str(edits_file), relation_implications=True)
    for data in (plain, rich):
        data.setup("fit")
    assert rich.cases[:3] == plain.cases[:3]  # the first has its own, the others have no relation
    assert plain.requests[0].implications != ()
    assert plain.requests[3].implications == ()
    assert rich.requests[3] == replace(plain.requests[3], implications=implications("P36"))
    both = EditDataModule(str(edits_file), relation_phrasings=True, relation_implications=True)
    both.setup("fit")
    assert both.requests[3].implications == implications("P36")
    assert len(both.requests[3].phrasings) > len(plain.requests[3].phrasings)


def test_edits_that_contradict_others_end_the_run_or_are_left_out_and_counted(edits_file, edit_lines):
    edit_lines[0] |= {"aliases": ["Italy", "the French Republic"]}
    edit_lines.append({**edit_lines[1], "edit_id": "again", "target_new": "Lima"})
    edits_file.write_text("".join(json.dumps(line) + "\n" for line in edit_lines), encoding="utf-8")
    conflict = (
        "`edits` must give one fact one object, but 'germany' gives 'London' and 'again' gives 'Lima' to "
        "'The capital of Germany is'; leave one out."
    )
    name = (
        "`aliases` of edit 'france' must not be the subject of another edit, but 'Italy' is that of 'italy'; "
        "leave it out."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(conflict)}$"):
        EditDataModule(str(edits_file)).setup("fit")
    data = EditDataModule(str(edits_file), on_bad="skip")
    with pytest.warns(UserWarning, match=f"^Left out 2 edits or aliases; the first was {re.escape(conflict)}$"):
        data.setup("fit")
    assert data.refusals == [conflict, name]
    assert [r.edit_id for r in data.requests] == ["france", "germany", "darrieux", "italy"]
    assert data.requests[0].aliases == ("the French Republic",)
    front = EditDataModule(str(edits_file), on_bad="skip", limit=2)
    front.setup("fit")  # only edits that are taken contradict each other
    assert front.refusals == []
    assert front.requests[0].aliases == ("Italy", "the French Republic")
    bare = EditDataModule(str(edits_file), limit=4, subject_aliases=False)
    bare.setup("fit")  # names that are not kept are nobody's
    assert len(bare.requests) == 4
