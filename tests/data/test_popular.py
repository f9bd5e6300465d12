"""Both forms of RippleEdits' Popular split, real and hand-made."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mega_pl.data import DataFile, read
from mega_pl.data.popular import CLOZES, IDIOMS, PHRASES, Edited, conditions_of
from mega_pl.edits.request import EditCase, Probe, Query, RippleTest

AXES = ("relation_specificity", "compositionality_1", "compositionality_2", "subject_aliasing")
SPELLED = ("Relation_Specificity", "Compositionality_I", "Compositionality_II", "Subject_Aliasing")

DRIFTED = {"170", "574"}
"""Edits whose tests use another name of the subject, so that KnowEdit's form cannot tell the two-hop kinds apart."""


def query(prompt: str, *answers: list[str]) -> dict[str, Any]:
    return {"prompt": prompt, "answers": [{"value": value, "aliases": aliases} for value, *aliases in answers]}


def ripple(**changes: object) -> dict[str, Any]:
    edit = {
        "prompt": "The name of the mother of Ann Lee is Eve.",
        "subject_id": "Q1",
        "relation": "MOTHER",
        "target_id": "Q2",
        "original_fact": {"prompt": "The name of the mother of Ann Lee is Mary Lee.", "target_id": "Q3"},
    }
    return {"example_type": "popular", "edit": edit, **changes}


def axis(tests: list[Any], conditions: list[Any] | None = None) -> list[dict[str, Any]]:
    """One test; without conditions, one whose copy of the data lost them."""
    given = {} if conditions is None else {"condition_queries": conditions}
    return [{"test_queries": tests, "test_condition": "OR", **given}]


def test_both_real_forms_agree(ripples: list[EditCase], knowedits: list[EditCase]) -> None:
    assert len(ripples) == len(knowedits) == 600
    assert [case.request for case in ripples] == [case.request for case in knowedits]
    for ours, theirs in zip(ripples, knowedits, strict=True):
        if ours.request.edit_id not in DRIFTED:
            assert ours == theirs


def test_every_real_test_with_an_answer_is_read(ripples: list[EditCase]) -> None:
    read = {name: [probe for case in ripples for probe in getattr(case, name)] for name in AXES}
    conditioned = {name: sum(bool(probe.condition_prompt) for probe in probes) for name, probes in read.items()}
    assert [len(read[name]) for name in AXES] == [3672, 1114, 300, 1598]
    assert [conditioned[name] for name in AXES] == [3672, 1106, 296, 1598]


def test_every_real_axis_is_read_whole(ripples: list[EditCase]) -> None:
    tests = [test for case in ripples for test in case.ripple]
    assert Counter(test.axis for test in tests) == {
        "Relation_Specificity": 3672,
        "Logical_Generalization": 304,
        "Subject_Aliasing": 1598,
        "Compositionality_I": 1114,
        "Compositionality_II": 300,
        "Forgetfulness": 312,
    }
    assert Counter(test.axis for test in tests if not test.filterable) == {
        "Logical_Generalization": 108,
        "Compositionality_I": 8,
        "Compositionality_II": 4,
    }
    assert all(test.conditions for test in tests if test.filterable and test.axis != "Logical_Generalization")
    assert sum(len(query.answers) > 1 for test in tests for query in test.queries) > 1000  # several entities at once
    asked = [query for test in tests for query in (*test.queries, *test.conditions)]
    assert all(len(name) > 1 or name.isdigit() for query in asked for names in query.answers for name in names)


def test_real_probes_are_the_first_query_and_answer_of_the_ripple_tests(ripples: list[EditCase]) -> None:
    for case in ripples:
        for name, spelled in zip(AXES, SPELLED, strict=True):
            tests = [test for test in case.ripple if test.axis == spelled]
            for probe, test in zip(getattr(case, name), tests, strict=True):
                assert (probe.prompt, probe.answers) == (test.queries[0].prompt, test.queries[0].answers[0])
                assert bool(probe.condition_prompt) == bool(test.conditions)


def test_real_labels_are_told_without_the_label_fields(
    shared_data: Path, ripples: list[EditCase], write_json: Callable[[object], Path]
) -> None:
    path = shared_data / "popular" / "popular_rippleedits.json"
    records = json.loads(path.read_text(encoding="utf-8"))
    for record in records:
        for name in ("cloze", "subject", "target_new"):
            del record["edit"][name]
        del record["edit"]["original_fact"]["ground_truth"]
    with pytest.warns(UserWarning, match="Left out 1 of the records"):  # one original sentence lacks its object
        told = {
            case.request.edit_id: case.request
            for case in read(DataFile(write_json(records), "rippleedits"), on_bad="skip")
        }
    differ = [case for case in ripples if told.get(case.request.edit_id) != case.request]
    # in two more the original sentence has another name of the object than the label
    assert [case.request.edit_id for case in differ] == ["299", "473", "585"]


def test_labels_are_read_off_a_known_cloze(write_json: Callable[[object], Path]) -> None:
    request = read(DataFile(write_json([ripple()]), "rippleedits"))[0].request
    assert (request.edit_id, request.relation) == ("0", "P25")
    assert (request.prompt, request.subject) == ("The name of the mother of {} is", "Ann Lee")
    assert (request.target_new, request.target_true) == ("Eve", "Mary Lee")


def test_an_unknown_cloze_is_the_shared_words_of_both_sentences(write_json: Callable[[object], Path]) -> None:
    edit = {
        "prompt": "Ann Lee is fond of New York.",
        "relation": "FONDNESS",
        "original_fact": {"prompt": "Ann Lee is fond of New York City."},
    }
    with pytest.raises(ValueError, match=r"record 0: `edit.subject` must be given .* 'Ann Lee is fond of New York'"):
        read(DataFile(write_json([ripple(edit=edit)]), "rippleedits"))
    edit = {**edit, "subject": "Ann Lee", "original_fact": {"prompt": "Ann Lee is fond of Rome."}}
    request = read(DataFile(write_json([ripple(edit=edit)]), "rippleedits"))[0].request
    assert (request.prompt, request.relation) == ("{} is fond of", "FONDNESS")
    assert (request.target_new, request.target_true) == ("New York", "Rome")


def test_label_fields_win(write_json: Callable[[object], Path]) -> None:
    edit = {
        "prompt": "Question: Where does Ann Lee live? Answer: Bern.",
        "relation": "P551",
        "subject": "Ann Lee",
        "target": "Bern",
        "original_fact": {"prompt": "Question: Where does Ann Lee live? Answer: Biel.", "target": "Biel/Bienne"},
    }
    request = read(DataFile(write_json([ripple(case_id=12, edit=edit)]), "rippleedits"))[0].request
    assert (request.edit_id, request.relation) == ("12", "P551")
    assert request.prompt == "Question: Where does {} live? Answer:"
    assert (request.target_new, request.target_true) == ("Bern", "Biel/Bienne")


def test_ripple_tests_keep_all_queries_answers_and_conditions(write_json: Callable[[object], Path]) -> None:
    both = {
        "test_queries": [
            query("The gender of Ann Lee is", ["female", "woman", " ", "woman", "f"], ["7", "seven"]),
            query("Nobody knows what Ann Lee", ["?"]),
            query("The sex of Ann Lee is", ["female"]),
        ],
        "test_condition": "AND",
        "condition_queries": [query("Ann Lee is a", ["woman"]), query("The mother of Ann Lee is", ["Mary Lee"])],
    }
    alone = {"test_queries": [query("Ann Lee lives in", ["Bern"])], "condition_queries": []}
    (case,) = read(DataFile(write_json([ripple(Relation_Specificity=[both], Forgetfulness=[alone])]), "rippleedits"))
    assert case.ripple == (
        RippleTest(
            axis="Relation_Specificity",
            queries=(
                Query(prompt="The gender of Ann Lee is", answers=(("female", "woman"), ("7", "seven"))),
                Query(prompt="The sex of Ann Lee is", answers=(("female",),)),
            ),
            conditions=(
                Query(prompt="Ann Lee is a", answers=(("woman",),)),
                Query(prompt="The mother of Ann Lee is", answers=(("Mary Lee",),)),
            ),
            every=True,
        ),
        RippleTest(axis="Forgetfulness", queries=(Query(prompt="Ann Lee lives in", answers=(("Bern",),)),)),
    )


def test_first_queries_and_first_answers_are_probes_and_unanswered_tests_left_out(
    write_json: Callable[[object], Path],
) -> None:
    tests = [query("The gender of Ann Lee is", ["female", "woman", " ", "woman"], ["other"]), query("Not read")]
    given = [query("The sex of Ann Lee is", ["female"]), query("Not read")]
    record = ripple(Relation_Specificity=axis(tests, given) + axis([query("No answer is")]) + axis([]))
    case = read(DataFile(write_json([record]), "rippleedits"))[0]
    assert case.relation_specificity == (
        Probe(
            prompt="The gender of Ann Lee is",
            answers=("female", "woman"),
            condition_prompt="The sex of Ann Lee is",
            condition_answers=("female",),
        ),
    )
    assert len(case.ripple) == 1


@pytest.mark.parametrize(
    ("name", "prompt", "condition", "answers"),
    [
        ("Relation_Specificity", "The gender of Ann Lee is", "The gender of Ann Lee is", ("xy",)),
        ("Subject_Aliasing", "The name of the mother of Annie is", "The name of the mother of Annie is", ("xy",)),
        ("Compositionality_I", "The gender of the mother of Ann Lee is", "The gender of Eve is", ("xy",)),
        (
            "Compositionality_I",
            "The name of the maternal aunt of Ann Lee is",
            "The name of the sister of Eve is",
            ("xy",),
        ),
        ("Compositionality_I", "The name of the maternal aunt of Tom is", "", ()),
        ("Compositionality_I", "The name of the maternal great aunt of Ann Lee is", "", ()),
        (
            "Compositionality_II",
            "The name of the mother of the spouse of Tom is",
            "The name of the spouse of Tom is",
            ("Ann Lee",),
        ),
        (
            "Compositionality_II",
            "The name of the mother in law of Tom is",
            "The name of the spouse of Tom is",
            ("Ann Lee",),
        ),
        ("Compositionality_II", "The name of the father in law of Tom is", "", ()),
        ("Compositionality_II", "The name of the mother of the spouse of  is", "", ()),
    ],
)
def test_missing_conditions_are_rebuilt(
    write_json: Callable[[object], Path], name: str, prompt: str, condition: str, answers: tuple[str, ...]
) -> None:
    case = read(DataFile(write_json([ripple(**{name: axis([query(prompt, ["xy"])])})]), "rippleedits"))[0]
    (probe,) = (probe for axis_name in AXES for probe in getattr(case, axis_name))
    assert (probe.condition_prompt, probe.condition_answers) == (condition, answers)
    assert case.ripple[0].filterable == bool(condition)


COUNTRY = "The name of the country which {} is associated with is"


@pytest.mark.parametrize(
    ("template", "prompt", "condition"),
    [
        (
            COUNTRY,
            "The name of the continent which X is part of is",
            "The name of the continent which New is part of is",
        ),
        (
            COUNTRY,
            "The name of the anthem that is most likely to be performed in X is",
            "The name of the anthem of New is",
        ),
        (COUNTRY, "The name of the continent which Y is part of is", None),
        ("The name of the mother of {} is", "The name of the child of New is", ""),
        ("The name of the mother of {} is", "The names of the siblings of X are", None),
        ("The name of the spouse of {} is", "The names of the siblings of New are", ""),
        ("{} follows", "New is followed by", ""),
        ("The place of death of {} is", "Is X still alive?", ""),
        ("The gender of {} is", "The name of the child of New is", None),
    ],
)
def test_conditions_of_logical_generalization(template: str, prompt: str, condition: str | None) -> None:
    asked = Query(prompt=prompt, answers=(("xy",), ("z1",)))
    wanted = None if condition is None else (Query(prompt=condition, answers=asked.answers),) if condition else ()
    assert conditions_of("Logical_Generalization", asked, Edited(template, "X", "New")) == wanted


def test_noun_phrases_lead_back_to_their_own_cloze() -> None:
    edited = Edited("The gender of {} is", "Eve", "male")
    for cloze, phrase in PHRASES.items():
        asked = Query(prompt=f"The gender of {phrase.replace('{}', 'Tom')} is", answers=(("male",),))
        condition = Query(prompt=cloze.replace("{}", "Tom"), answers=(("Eve",),))
        assert conditions_of("Compositionality_II", asked, edited) == (condition,)


@pytest.mark.parametrize("idiom", IDIOMS)
def test_idioms_are_two_hops(idiom: str) -> None:
    first, second = (CLOZES[name][1] for name in IDIOMS[idiom])
    asked = Query(prompt=f"The name of the {idiom} of Tom is", answers=(("Ann",),))
    (condition,) = conditions_of("Compositionality_I", asked, Edited(first, "Tom", "New")) or ()
    assert condition == Query(prompt=second.replace("{}", "New"), answers=(("Ann",),))
    (condition,) = conditions_of("Compositionality_II", asked, Edited(second, "Eve", "Ann")) or ()
    assert condition == Query(prompt=first.replace("{}", "Tom"), answers=(("Eve",),))


def test_the_original_fact_may_be_called_previous_and_a_list_be_misspelled(
    write_json: Callable[[object], Path],
) -> None:
    edit = ripple()["edit"]
    edit["previous_fact"] = edit.pop("original_fact")
    (case,) = read(
        DataFile(write_json([ripple(edit=edit, Relation_Specifity=axis([query("p", ["xy"])]))]), "rippleedits")
    )
    assert case.request.target_true == "Mary Lee"
    assert case.ripple[0].axis == "Relation_Specificity"


def test_a_new_fact_takes_what_the_model_says_before(write_json: Callable[[object], Path]) -> None:
    edit = {"prompt": "The name of the mother of Ann Lee is Eve.", "relation": "MOTHER"}
    path = write_json([ripple(example_type="recent", edit=edit)])
    with pytest.raises(ValueError, match=r"record 0: `edit\.original_fact` must tell the object before, .*`ask`"):
        read(DataFile(path, "rippleedits"))
    (case,) = read(
        DataFile(path, "rippleedits"),
        ask=lambda prompts: [{"The name of the mother of Ann Lee is": "Ruth"}[prompt] for prompt in prompts],
    )
    assert (case.request.subject, case.request.target_new, case.request.target_true) == ("Ann Lee", "Eve", "Ruth")
    with pytest.raises(ValueError, match="record 0: `target_new` of edit '0' must differ"):
        read(
            DataFile(path, "rippleedits"), ask=lambda prompts: ["Eve" for prompt in prompts]
        )  # the model knows it already
    with pytest.raises(ValueError, match=r"record 0: `edit\.subject` must be given where no known cloze fits"):
        read(
            DataFile(write_json([ripple(edit={**edit, "relation": "FONDNESS"})]), "rippleedits"),
            ask=lambda prompts: ["Ruth" for prompt in prompts],
        )


def test_a_fact_that_has_an_original_is_not_asked_for(write_json: Callable[[object], Path]) -> None:
    assert (
        read(DataFile(write_json([ripple()]), "rippleedits"), ask=lambda prompts: ["Ruth" for prompt in prompts])[
            0
        ].request.target_true
        == "Mary Lee"
    )


def test_an_object_that_does_not_end_the_sentence_is_refused(write_json: Callable[[object], Path]) -> None:
    edit = {**ripple()["edit"], "target_new": "Eva"}
    with pytest.raises(ValueError, match=r"record 0: `edit.prompt` must end with the new object 'Eva', but got"):
        read(DataFile(write_json([ripple(edit=edit)]), "rippleedits"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"edit": None}, "`edit.prompt` must be a string, but is missing."),
        ({"edit": {"prompt": "x."}}, "`edit.original_fact` must tell the object before, but is missing; name a model"),
        (
            {"edit": {"prompt": "x.", "previous_fact": {"target_id": "Q3"}}},
            "`edit.previous_fact.prompt` must be a string, but is missing.",
        ),
        (
            {"Forgetfulness": [{"test_queries": [query("p", ["xy"])], "test_condition": "XOR"}]},
            "`Forgetfulness[0].test_condition` must be OR or AND, but got 'XOR'.",
        ),
        ({"edit": {**ripple()["edit"], "subject": "Bob"}}, "`edit.prompt` must contain the subject exactly once"),
        ({"Subject_Aliasing": {}}, "`Subject_Aliasing` must be a list, but got {}."),
        (
            {"Subject_Aliasing": axis([{"answers": [{"value": "x"}]}])},
            "`Subject_Aliasing[0].test_queries[0].prompt` must be a string, but is missing.",
        ),
        (
            {"Subject_Aliasing": axis([{"prompt": "p", "answers": [{"value": 3}]}])},
            "`Subject_Aliasing[0].test_queries[0].answers[0].value` must be a string, but got 3.",
        ),
    ],
)
def test_malformed_ripple_records_are_refused(
    write_json: Callable[[object], Path], changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(f"record 0: {message}")):
        read(DataFile(write_json([ripple(**changes)]), "rippleedits"))


def knowedit(**changes: object) -> dict[str, Any]:
    edit = {"subject": "Ann Lee", "prompt": "The name of the mother of Ann Lee is", "target_new": "Eve"}
    return {**edit, "ground_truth": "Mary Lee", **changes}


def test_reasoning_is_told_apart(write_json: Callable[[object], Path]) -> None:
    prompts = [
        "The gender of the mother of Ann Lee is",
        "The name of the maternal aunt of Ann Lee is",
        "The name of the mother of the founder of Ann Lee and Sons is",
        "The name of the mother in law of Tom is",
    ]
    reasoning = [{"prompt": prompt, "ground_truth": [[], ["xy", "yz"]]} for prompt in prompts]
    reasoning.append({"prompt": "No answer is", "ground_truth": []})
    case = read(DataFile(write_json([knowedit(portability={"Reasoning": reasoning})]), "knowedit"))[0]
    assert [probe.prompt for probe in case.compositionality_1] == prompts[:2]
    assert [probe.prompt for probe in case.compositionality_2] == prompts[2:]
    assert case.compositionality_1[0].condition_prompt == "The gender of Eve is"
    assert case.compositionality_1[1].condition_prompt == "The name of the sister of Eve is"
    assert case.compositionality_2[0].condition_prompt == "The name of the founder of Ann Lee and Sons is"
    assert case.compositionality_2[1].condition_prompt == "The name of the spouse of Tom is"


def test_knowedit_keeps_all_axes_and_answers(write_json: Callable[[object], Path]) -> None:
    portability = {
        "Logical_Generalization": [{"prompt": "The name of the child of Eve is", "ground_truth": ["Ann Lee"]}]
    }
    locality = {"Forgetfulness": [{"prompt": "Not Eve, but", "ground_truth": [["Mary", "M"], ["Ruth"]]}]}
    (case,) = read(DataFile(write_json([knowedit(portability=portability, locality=locality)]), "knowedit"))
    not_eve = Query(prompt="Not Eve, but", answers=(("Mary",), ("Ruth",)))
    assert case.ripple == (
        RippleTest(
            axis="Logical_Generalization",
            queries=(Query(prompt="The name of the child of Eve is", answers=(("Ann Lee",),)),),
        ),
        RippleTest(axis="Forgetfulness", queries=(not_eve,), conditions=(not_eve,)),
    )


def test_names_under_which_the_edit_is_asked_become_aliases(write_json: Callable[[object], Path]) -> None:
    cloze = "The name of the mother of {} is"
    prompts = [*(cloze.replace("{}", name) for name in ("Annie", "A. Lee", "Ann Lee", "Annie")), "Annie was born to"]
    tests = [{"prompt": prompt, "ground_truth": ["Eve"]} for prompt in prompts]
    other = [{"prompt": cloze.replace("{}", "Eve"), "ground_truth": ["Ruth"]}]
    portability = {"Subject_Aliasing": tests, "Logical_Generalization": other}
    (theirs,) = read(DataFile(write_json([knowedit(portability=portability)]), "knowedit"))
    queries = [query(prompt, ["Eve"]) for prompt in prompts]
    one = ripple(
        Subject_Aliasing=axis(queries[:2]) + axis(queries[2:]),
        Forgetfulness=axis([query(cloze.replace("{}", "Eve"), ["Ruth"])]),
    )
    (ours,) = read(DataFile(write_json([one]), "rippleedits"))
    assert theirs.request.aliases == ours.request.aliases == ("Annie", "A. Lee")


def test_a_blank_name_is_refused_or_counted(write_json: Callable[[object], Path]) -> None:
    nobody = axis([query("The name of the mother of   is", ["Eve"])])
    path = write_json([ripple(Subject_Aliasing=nobody), ripple()])
    with pytest.raises(ValueError, match="record 0: `aliases` of edit '0' must not be blank"):
        read(DataFile(path, "rippleedits"))
    with pytest.warns(UserWarning, match="Left out 1"):
        (case,) = read(DataFile(path, "rippleedits"), on_bad="skip")
    assert case.request.edit_id == "1"


def test_real_tests_of_aliases_name_the_subject(ripples: list[EditCase]) -> None:
    aliases = [len(case.request.aliases) for case in ripples]
    assert (sum(aliases), sum(map(bool, aliases))) == (1595, 470)
    for case in ripples:
        names = {case.request.prompt.replace("{}", name) for name in case.request.aliases}
        assert names == {probe.prompt for probe in case.subject_aliasing} - {case.request.filled}


@pytest.mark.parametrize("name", ["rephrase", "rephrase_prompt"])
@pytest.mark.parametrize("value", ["Ann Lee was born to", ["Ann Lee was born to"]])
def test_knowedit_has_paraphrases_under_two_names(
    write_json: Callable[[object], Path], name: str, value: object
) -> None:
    (case,) = read(DataFile(write_json([knowedit(**{name: value})]), "knowedit"))
    assert case.paraphrase_prompts == ("Ann Lee was born to",)


def test_knowedit_may_list_true_objects_or_have_none(write_json: Callable[[object], Path]) -> None:
    assert (
        read(DataFile(write_json([knowedit(ground_truth=["Eve", "Ruth"])]), "knowedit"))[0].request.target_true
        == "Ruth"
    )
    told = read(
        DataFile(write_json([knowedit(ground_truth=None)]), "knowedit"),
        ask=lambda prompts: [f"after {prompt}" for prompt in prompts],
    )
    assert told[0].request.target_true == "after The name of the mother of Ann Lee is"


def test_another_prompt_needs_the_subject_once(write_json: Callable[[object], Path]) -> None:
    assert (
        read(DataFile(write_json([knowedit(prompt="Ann Lee is from")]), "knowedit"))[0].request.prompt == "{} is from"
    )
    with pytest.raises(ValueError, match="record 0: `prompt` must contain the subject 'Ann Lee' exactly once, but got"):
        read(DataFile(write_json([knowedit(prompt="She is from")]), "knowedit"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ground_truth": 3}, "`ground_truth` must be a list of strings, but got 3."),
        ({"ground_truth": None}, "`ground_truth` must tell the object before, but is missing; name a model"),
        ({"ground_truth": ["Eve"]}, "`target_new` of edit '0' must differ from `target_true`, but both are 'Eve'."),
        ({"portability": []}, "`portability` must be a JSON object, but got []."),
        (
            {"locality": {"Relation_Specificity": [{"prompt": "p", "ground_truth": [3]}]}},
            "`locality.Relation_Specificity[0].ground_truth[0]` must be a list of strings, but got 3.",
        ),
    ],
)
def test_malformed_knowedit_records_are_refused(
    write_json: Callable[[object], Path], changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(f"record 0: {message}")):
        read(DataFile(write_json([knowedit(**changes)]), "knowedit"))


def test_names_are_found_in_any_spelling(write_json: Callable[[object], Path]) -> None:
    named, spelt = "Ren\u00e9 O'Neill", "Rene\u0301\u00a0O\u2019Neill"
    edit = {
        "prompt": f"The name of the mother of {spelt} is Eve.",
        "relation": "MOTHER",
        "cloze": f"The name of the mother of {spelt} is",
        "subject": named,
        "target_new": "Eve",
        "original_fact": {"prompt": f"The name of the mother of {spelt} is Mary.", "ground_truth": "Mary"},
    }
    asked = axis([query(f"The gender of the mother of {spelt} is", ["female"])])
    (case,) = read(DataFile(write_json([ripple(edit=edit, Compositionality_I=asked)]), "rippleedits"))
    assert (case.request.prompt, case.request.relation) == ("The name of the mother of {} is", "P25")
    assert case.compositionality_1[0].condition_prompt == "The gender of Eve is"
    record = knowedit(
        subject=named,
        prompt=edit["cloze"],
        portability={
            "Reasoning": [{"prompt": f"The gender of the mother of {spelt} is", "ground_truth": [["female"]]}]
        },
    )
    (case,) = read(DataFile(write_json([record]), "knowedit"))
    assert case.request.relation == "P25"
    assert case.compositionality_1[0].condition_prompt == "The gender of Eve is"
