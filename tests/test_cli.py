"""The command line: every shipped config runs, and a mistake ends in one line with nothing written."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import auto_parser

from mega_pl.cli import VERBS, main
from mega_pl.commands import dry_run
from mega_pl.edits import EditBank
from mega_pl.protocols import PROTOCOLS

EVERY_CONFIG = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
CONFIGS = [path for path in EVERY_CONFIG if path.stem.split("_")[0] not in VERBS]
Folder = Callable[[str], Path]
Lines = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in a folder of its own, so that whatever is written is found."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def options(model: Path | str, edits: Path | str) -> list[str]:
    return [
        *("--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.max_epochs", "1"),
        *("--model.sites", "[resid_mid.2,resid_mid.3]", "--model.prompts.prefixes", "1"),
        *("--trainer.num_sanity_val_steps", "0", "--trainer.enable_progress_bar", "false"),
        *("--trainer.default_root_dir", "run", "--trainer.logger", "false"),
        *("--trainer.callbacks+", "mega_pl.callbacks.BankCheckpoint"),
        *("--trainer.callbacks+", "mega_pl.callbacks.ResultTable"),
        *("--model.model_name_or_path", str(model)),
        *("--data", "mega_pl.data.datamodule.EditDataModule", "--data.files", str(edits)),
    ]


def refused(capsys: pytest.CaptureFixture[str], args: list[str]) -> str:
    """The one line in which a command ends; checks that it left no file."""
    with pytest.raises(SystemExit) as exit_:
        main(args)
    capsys.readouterr()
    message = exit_.value.code
    assert isinstance(message, str), f"exit code {message!r}"  # a text goes to stderr, and the exit code is 1
    assert message.startswith("error: ")
    assert "\n" not in message
    assert not list(Path.cwd().rglob("*"))
    return message


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_config_runs_one_batch(config: Path, roomy_folder: Folder, edit_lines: Lines, tmp_path: Path) -> None:
    model = roomy_folder("llama" if "llama" in config.stem else "gpt2")
    args = ["--model.model_name_or_path", str(model), "--model.dtype", "float32", "--model.sites", "[resid_mid.3]"]
    args += ["--model.prompts.prefixes", "1", "--data.init_args.edits_per_batch", "1"]
    if "lab" not in config.stem:
        records = tmp_path / "counterfact.json"
        records.write_text(json.dumps([counterfact(i, line) for i, line in enumerate(edit_lines)]), encoding="utf-8")
        args += ["--data.init_args.files", f"[{{path: {records}, format: counterfact}}]"]
    else:
        args += ["--data.init_args.known_by", "null"]  # the lab's facts, whether or not the model knows them
    main(["fit", "--config", str(config), "--trainer.fast_dev_run", "true", "--trainer.accelerator", "cpu", *args])
    assert not list(Path.cwd().rglob("*")), "a trial run writes nothing"


def counterfact(index: int, line: dict[str, Any]) -> dict[str, Any]:
    return {
        "case_id": index,
        "requested_rewrite": {
            "prompt": line["prompt"],
            "subject": line["subject"],
            "target_new": {"str": line["target_new"]},
            "target_true": {"str": line["target_true"]},
        },
        "paraphrase_prompts": line.get("paraphrase_prompts", []),
        "neighborhood_prompts": line.get("neighborhood_prompts", []),
        "source_list": [template.replace("{}", line["subject"]) for template in line.get("phrasings", [])],
    }


@pytest.mark.parametrize("config", sorted(set(EVERY_CONFIG) - set(CONFIGS)), ids=lambda path: path.stem)
def test_every_config_of_a_verb_is_understood(config: Path) -> None:
    read = auto_parser(VERBS[config.stem.split("_")[0]], as_positional=False).parse_args(["--config", str(config)])
    assert read.editors
    assert read.folder == f"runs/{config.stem}"


def test_there_are_configs() -> None:
    assert len(CONFIGS) >= 2
    assert len(EVERY_CONFIG) > len(CONFIGS)


def test_fit_leaves_a_run_that_test_goes_on_with(roomy_folder: Folder, edits_file: Path) -> None:
    args = options(roomy_folder("gpt2"), edits_file)
    main(["fit", *args])
    run = Path("run")
    written = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    bank = {f"edits/{name}" for name in ("edit_model.safetensors", "edit_config.json", "README.md")}
    assert written == bank | {"config.yaml", "metrics.json", "cases.jsonl", "figures/scores.png", "last.ckpt"}
    assert len(EditBank.from_pretrained(run / "edits")) == 4
    metrics = (run / "metrics.json").read_text()
    main(["test", *args, "--ckpt_path", str(run / "last.ckpt")])
    assert json.loads((run / "metrics.json").read_text()) == json.loads(metrics)


@pytest.mark.parametrize("form", ["--dry-run", "--dry_run=true"])
def test_a_dry_run_tells_what_a_fit_takes_without_its_weights(
    form: str, roomy_folder: Folder, edits_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "hollow"
    shutil.copytree(roomy_folder("gpt2"), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(SystemExit) as exit_:
        main(["fit", *options(folder, edits_file), form])
    assert exit_.value.code == 0
    told = capsys.readouterr().out
    assert "data: 4 edits; tests: acc 4, gen 2, spec 3, di 4, dii 4, ci 1, cii 1, rs 2, sa 1" in told
    assert "sites: resid_mid.2, resid_mid.3" in told
    assert re.search(r"weights +0.00 GiB", told)
    assert not list(Path.cwd().rglob("*"))


def test_a_dry_run_tells_the_bytes_of_the_maps_that_a_fit_makes(
    roomy_folder: Folder, edits_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dry_run, "GIB", 1)
    small = ["--model.maps.directions", "2", "--model.maps.object_directions", "1", "--model.maps.dtype", "int8"]
    args = [*options(roomy_folder("gpt2"), edits_file), *small]
    with pytest.raises(SystemExit):
        main(["fit", *args, "--dry-run"])
    found = re.search(r"maps of 4 edits +([\d.]+) GiB", capsys.readouterr().out)
    assert found
    main(["fit", *args])
    maps = [
        of_site[row] for of_site in EditBank.from_pretrained("run/edits").maps.values() for row in range(len(of_site))
    ]
    assert float(found[1]) == sum(tensor.nbytes for of_row in maps for tensor in of_row.tensors)


def comparison(folder: Path, model: Path, edits: Path, editor: str, rest: str) -> Path:
    """A config of `compare` with one editor."""
    path = folder / "compare.yaml"
    path.write_text(
        f"""
folder: run
backbones: [{{model_name_or_path: {model}}}]
data: {{mine: {{class_path: mega_pl.data.datamodule.EditDataModule, init_args: {{files: {edits}}}}}}}
editors: {{mine: {{class_path: mega_pl.editors.{editor}}}}}
{rest}
""",
        encoding="utf-8",
    )
    return path


def test_a_dry_run_of_a_comparison_tells_every_protocol(
    roomy_folder: Folder, edits_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = comparison(tmp_path, roomy_folder("llama"), edits_file, "Sake", "protocols: [sake, rome]")
    main(["compare", "--config", str(config), "--dry-run"])
    told = capsys.readouterr().out
    assert "data: mine, 4 edits; tests: sake 22, rome 9" in told
    assert "memory of llama in" in told
    assert not list(Path.cwd().rglob("*"))


def test_two_models_of_one_name_are_refused_before_any_work(
    roomy_folder: Folder, tiny_folder: Folder, edits_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = comparison(tmp_path, roomy_folder("llama"), edits_file, "Sake", "protocols: [sake]")
    other = f"}}, {{model_name_or_path: {tiny_folder('llama')}}}]"
    config.write_text(config.read_text("utf-8").replace("}]", other, 1), "utf-8")
    message = refused(capsys, ["compare", "--config", str(config), "--dry-run"])
    assert "`backbones` must have names of their own, as tables do, but got llama, llama" in message


def test_what_is_said_on_the_line_holds_wherever_its_config_stands(
    edits_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configs = Path(__file__).parents[1] / "configs"
    own = ["--data.init_args.files", str(edits_file), "--data", "mega_pl.data.datamodule.EditDataModule"]
    lines = {
        "fit": [*own, "--trainer.max_epochs", "7", "--config", str(configs / "lab_gpt2.yaml")],
        "compare": ["--folder=mine", f"--config={configs / 'compare_lab_gpt2.yaml'}"],
    }
    told = {}
    for command, words in lines.items():
        with pytest.raises(SystemExit):
            main([command, *words, "--print_config"])
        told[command] = capsys.readouterr().out
    assert "  max_epochs: 7\n" in told["fit"]
    assert f"    files: {edits_file}\n" in told["fit"]
    assert "folder: mine\n" in told["compare"]


def test_protocols_are_offered_by_their_names_and_others_refused(
    roomy_folder: Folder, edits_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = comparison(tmp_path, roomy_folder("llama"), edits_file, "Sake", "protocols: [sake, roem]")
    wanted = f"a protocol must be one of {', '.join(PROTOCOLS)}, but got 'roem'."
    assert refused(capsys, ["compare", "--config", str(config)]) == f"error: {wanted}"
    fit = [*options(roomy_folder("gpt2"), edits_file), "--model.protocols", "[roem]"]
    assert refused(capsys, ["fit", *fit]) == f"error: {wanted}"
    for verb in ("compare", "fit"):
        with pytest.raises(SystemExit):
            main([verb, "--help"])
        assert ", ".join(PROTOCOLS) in " ".join(capsys.readouterr().out.split())


def test_the_linearity_of_relations_is_compared(
    roomy_folder: Folder, edit_lines: Lines, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capitals = [
        {**edit_lines[0], "edit_id": name, "subject": name} for name in ("Peru", "Chad", "Mali", "Oman", "Cuba")
    ]
    edits = tmp_path / "edits.jsonl"
    edits.write_text("".join(json.dumps(line) + "\n" for line in capitals), encoding="utf-8")
    config = comparison(tmp_path, roomy_folder("llama"), edits, "Ike", "protocols: [linearity]\nmodes: [single]")
    main(["compare", "--config", str(config)])
    (result,) = json.loads(Path("run/metrics.json").read_text("utf-8"))["results"]
    assert {name: score["n"] for name, score in result["metrics"].items()} == {
        "faithfulness": 1,
        "constant": 1,
        "success": 5,
        "correlation": 0,
    }
    assert "5 edits, single | linearity faithfulness |" in capsys.readouterr().out


def test_protocols_that_look_at_the_bare_model_first(roomy_folder: Folder, edits_file: Path, tmp_path: Path) -> None:
    judges = "protocols: [general, residue]\nmodes: [single]"
    config = comparison(tmp_path, roomy_folder("llama"), edits_file, "Ike", judges)
    main(["compare", "--config", str(config)])
    results = {r["protocol"]: r["metrics"] for r in json.loads(Path("run/metrics.json").read_text("utf-8"))["results"]}
    assert results["general"]["unchanged"]["n"] == 10 * results["residue"]["ahead_last"]["n"] == 40
    shown = Path("run/table.md").read_text("utf-8").splitlines()[0]
    assert "| general divergence | residue ahead_half |" in shown  # IKE is not routed: nothing fires or does not
    assert "quarter" not in shown


def test_a_template_of_edits_is_a_data_set(tmp_path: Path, roomy_folder: Folder) -> None:
    main(["template", "--path", "mine.jsonl"])
    with pytest.raises(SystemExit) as exit_:
        main(["fit", *options(roomy_folder("gpt2"), "mine.jsonl"), "--dry-run"])
    assert exit_.value.code == 0
    with pytest.raises(SystemExit, match=r"error: `path` must be a new file, but 'mine.jsonl' exists"):
        main(["template", "--path", "mine.jsonl"])


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        (["--model.sites", "[resid_mid.9]"], r"must lie in \[0, 3\].*got 9"),
        (["--model.router.layer", "4"], r"`layer` must lie in \[0, 3\] for this model, but got 4"),
        (["--data.files", "nowhere.jsonl"], "there is no 'nowhere.jsonl'"),
        (["--model.model_name_or_path", "./nowhere"], "'./nowhere'"),
    ],
)
def test_a_dry_run_refuses_what_a_fit_would(
    changes: list[str], rule: str, roomy_folder: Folder, edits_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(capsys, ["fit", *options(roomy_folder("gpt2"), edits_file), *changes, "--dry-run"])
    assert re.search(rule, message), message


def test_a_dry_run_refuses_a_prompt_that_is_too_long(
    tiny_folder: Folder, edits_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(capsys, ["fit", *options(tiny_folder("gpt2"), edits_file), "--dry-run"])
    assert "must have at most 64 tokens together" in message


def test_a_dry_run_refuses_weights_that_do_not_fit(
    roomy_folder: Folder, edits_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dry_run, "device_bytes", lambda: 1000)
    args = [*options(roomy_folder("gpt2"), edits_file), "--dry-run"]
    assert "the run must fit into 0.0 GiB" in refused(capsys, ["fit", *args])
    with pytest.raises(SystemExit) as exit_:
        main(["fit", *args, "--model.device_map", "auto"])
    assert exit_.value.code == 0


def test_the_seed_is_one_for_everything(roomy_folder: Folder, edits_file: Path) -> None:
    main(["fit", "--seed_everything", "7", *options(roomy_folder("gpt2"), edits_file)])
    assert json.loads(Path("run/metrics.json").read_text())["seed"] == 7


BAD_EDITS: dict[str, tuple[dict[str, Any], str]] = {
    "prompt without a slot": ({"prompt": "The capital is"}, r"`prompt`.*exactly one {}"),
    "prompt with two slots": ({"prompt": "{} and {} are"}, r"`prompt`.*exactly one {}"),
    "empty target": ({"target_new": ""}, "`target_new`"),
    "blank subject": ({"subject": " "}, "`subject`"),
    "new equal to old": ({"target_new": "Paris"}, "must differ from `target_true`"),
    "duplicate ids": ({"edit_id": "germany"}, "'germany'"),
    "no such field": ({"target": "Rome"}, "target"),
    "a number for a text": ({"subject": 7}, "`subject`"),
}


@pytest.mark.parametrize("name", BAD_EDITS)
def test_a_malformed_edit_is_refused(
    name: str, roomy_folder: Folder, edits_file: Path, edit_lines: Lines, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, rule = BAD_EDITS[name]
    lines = [{**edit_lines[0], **changes}, *edit_lines[1:]]
    edits_file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    message = refused(capsys, ["fit", *options(roomy_folder("gpt2"), edits_file)])
    assert str(edits_file) in message
    assert ", line " in message
    assert re.search(rule, message), message


BAD_OPTIONS = {
    "unknown model": (["--model.model_name_or_path", "no/such-model"], "'no/such-model'"),
    "no such folder": (["--model.model_name_or_path", "./nowhere"], "'./nowhere'"),
    "layer out of range": (["--model.sites", "[resid_mid.9]"], r"must lie in \[0, 3\].*got 9"),
    "unknown site": (["--model.sites", "[residual.1]"], "KIND.LAYER"),
    "strength out of range": (["--model.maps.strength", "9"], r"`strength` must lie in \(0, 2\]"),
    "router of a layer that is not there": (["--model.router.layer", "4"], r"`layer` must lie in \[0, 3\].*got 4"),
    "router of no layer": (["--model.router.layer", "-1"], "`layer` must be at least 0, but got -1"),
    "router without evidence": (
        ["--model.router.subject", "false", "--model.router.relation", "false"],
        "`subject` or `relation` must be on, but both are off",
    ),
    "no such encoder": (
        ["--model.router.encoder", "./nowhere"],
        "`encoder` must be a folder or a hub name of a sentence encoder, but got './nowhere'",
    ),
    "no tokens a batch": (["--model.tokens_per_batch", "0"], "`tokens_per_batch` must be at least 1"),
    "router of all": (["--model.router.false_alarms", "1.5"], r"`false_alarms` must lie in \(0, 1\)"),
    "no edits": (["--data.limit", "0"], "`limit` must be at least 1"),
    "no file": (["--data.files", "nowhere.jsonl"], "there is no 'nowhere.jsonl'"),
    "a folder for a file": (["--data.files", ".."], r"data must come from a file, but '\.\.' is a folder"),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_a_bad_option_is_refused(
    name: str, roomy_folder: Folder, edits_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, rule = BAD_OPTIONS[name]
    message = refused(capsys, ["fit", *options(roomy_folder("gpt2"), edits_file), *changes])
    assert re.search(rule, message), message


@pytest.mark.parametrize("command", ["fit", "validate", "test"])
def test_every_command_refuses_before_it_writes(
    command: str, roomy_folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    args = [command, *options(roomy_folder("gpt2"), "nowhere.jsonl"), "--trainer.logger", "true"]
    assert "there is no 'nowhere.jsonl'" in refused(capsys, args)


def test_a_site_that_the_architecture_lacks_is_refused(
    roomy_folder: Folder, edits_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(capsys, ["fit", *options(roomy_folder("gpt_neox"), edits_file)])
    assert "must be of a kind that this model has, attn_out, mlp_out, resid_post, but got" in message


@pytest.mark.parametrize("words", [["--help"], ["-h"], []])
def test_help_lists_every_command_with_a_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main(words)
    told = capsys.readouterr().out.splitlines()
    commands = "fit validate test predict look attribute compare template export".split()
    assert f"{{{','.join(commands)}}}" in told[0]
    for command in commands:
        assert [line for line in told if re.fullmatch(rf"  {command} +[A-Z][^`]+\.", line)], command


@pytest.mark.parametrize("command", ["fit", *VERBS])
def test_every_command_has_help_of_its_own(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([command, "--help"])
    assert exit_.value.code == 0
    assert re.match(rf"usage: [^\n]*\b{command} ", capsys.readouterr().out)


def test_a_call_without_a_command_is_told_all_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--seed", "3"])
    assert exit_.value.code == 2
    assert "{fit,validate,test,predict,look,attribute,compare,template,export}" in capsys.readouterr().err


def test_a_wrong_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    known = "fit, validate, test, predict, look, attribute, compare, template, export"
    rule = f"error: the command must be one of {known}, but got 'fi'."
    assert refused(capsys, ["fi", "--config", "x.yaml"]) == rule


def test_a_place_that_cannot_be_written_is_named(
    roomy_folder: Folder, edits_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(capsys, ["template", "--path", "no/such/dir/e.jsonl"])
    assert "'no/such/dir/e.jsonl' must be a place to read from or write to, but No such file or directory." in message
    args = [*options(roomy_folder("gpt2"), edits_file), "--trainer.default_root_dir", f"{edits_file}/run"]
    assert "must be a place to read from or write to, but Not a directory." in refused(capsys, ["fit", *args])
    message = refused(capsys, ["test", *options(roomy_folder("gpt2"), edits_file), "--ckpt_path", "no.ckpt"])
    assert "`ckpt_path` must be a file, or last, best or hpc, but there is no 'no.ckpt'." in message


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"", "it is empty"),
        (b'{"edit_id": "a", "prompt": "The cap', "line 1: must be a JSON list"),
        (b"[{]", "must be a JSON list"),
        (b"[]", "it is empty"),
        (b"[1]", "must be a JSON object"),
        (b"\xff\xfe\x00", "must be JSON in UTF-8, but is in UTF-16"),
        (b"\xe9\x00", "must be UTF-8"),
    ],
)
def test_a_damaged_file_is_refused(
    content: bytes, rule: str, roomy_folder: Folder, edits_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edits_file.write_bytes(content)
    message = refused(capsys, ["fit", *options(roomy_folder("gpt2"), edits_file)])
    assert rule in message
    assert str(edits_file) in message


def test_an_unknown_architecture_is_refused(
    edits_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "bert"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "bert"}')
    message = refused(capsys, ["fit", *options(folder, edits_file)])
    assert "`model_type` must be one of" in message


def test_no_data_is_a_wrong_call(roomy_folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    args = options(roomy_folder("gpt2"), "edits.jsonl")
    with pytest.raises(SystemExit) as exit_:
        main(["fit", *args[: args.index("--data")]])
    assert exit_.value.code == 2
    assert "required: fit.data" in capsys.readouterr().err


def test_nothing_to_evaluate_is_refused(roomy_folder: Folder, edits_file: Path) -> None:
    with pytest.raises(SystemExit, match=r"error: a bank must have at least one edit.*run `fit` first"):
        main(["validate", *options(roomy_folder("gpt2"), edits_file)])


def test_what_is_said_holds_over_what_a_checkpoint_was_made_with(roomy_folder: Folder, edits_file: Path) -> None:
    args = options(roomy_folder("gpt2"), edits_file)
    main(["fit", *args])
    last = Path("run") / "last.ckpt"
    main(["fit", *args, "--ckpt_path", str(last), "--model.router.false_alarms", "0.2"])
    assert EditBank.from_pretrained("run/edits").settings["router"]["false_alarms"] == 0.2


def test_a_checkpoint_of_other_settings_is_refused(roomy_folder: Folder, edits_file: Path) -> None:
    args = options(roomy_folder("gpt2"), edits_file)
    main(["fit", *args])
    last = Path("run") / "last.ckpt"
    before = last.read_bytes()
    with pytest.raises(SystemExit, match="error: `prompts` must be what the checkpoint's edits were fitted with"):
        main(["fit", *args, "--ckpt_path", str(last), "--model.prompts.prefixes", "2"])
    assert last.read_bytes() == before
