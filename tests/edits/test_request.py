import dataclasses
import json
import re
import unicodedata
from typing import Any

import pytest

from mega_pl.edits import EditCase, EditRequest, Probe, Query, RippleTest, check_requests
from mega_pl.edits.conflicts import conflicts, shared_names
from mega_pl.edits.storage import request_from

FIELDS = {
    "edit_id": "2",
    "prompt": "{} plays the",
    "subject": "Toko Yasuda",
    "target_new": "piano",
    "target_true": "guitar",
}


def request(**changes: Any) -> EditRequest:
    return EditRequest(**{**FIELDS, **changes})


def probe(**changes: Any) -> Probe:
    return Probe(**{"prompt": "p", "answers": ("a",), **changes})


def test_filled_puts_the_subject_into_the_prompt():
    assert request().filled == "Toko Yasuda plays the"
    assert request(prompt="The instrument of {} is the").filled == "The instrument of Toko Yasuda is the"


def test_braces_that_are_no_slot_are_left_alone():
    assert request(prompt="In {x} of {}, {0}", subject="C{}").filled == "In {x} of C{}, {0}"


def test_white_space_around_the_texts_is_dropped():
    stray = request(
        prompt=" {} plays the ",
        subject="Toko Yasuda\n",
        target_new=" piano",
        target_true="guitar ",
        phrasings=("{} on ",),
        implications=((" The maker of the instrument of {} is",),),
    )
    assert stray == request(phrasings=("{} on",), implications=(("The maker of the instrument of {} is",),))


def test_request_is_frozen_hashable_and_named_only():
    assert len({request(), request(), request(target_new="drums")}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        request().subject = "John Lennon"  # type: ignore[misc]
    with pytest.raises(TypeError, match="positional argument"):
        EditRequest("2", "{} plays the", "Toko Yasuda", "piano", "guitar")  # type: ignore[call-arg]


def test_replace_checks_again():
    assert dataclasses.replace(request(), target_new="drums").target_new == "drums"
    with pytest.raises(ValueError, match="must differ"):
        dataclasses.replace(request(), target_new="guitar")


BLANKS = [(name, blank) for name in sorted(FIELDS) for blank in ("", " ", "\n") if (name, blank) != ("edit_id", "")]


def test_an_id_that_is_left_out_is_made_from_the_question():
    assert request(edit_id="", prompt="{} plays the", subject="Toko Yasuda").edit_id == "toko-yasuda-plays-the"


@pytest.mark.parametrize(("name", "blank"), BLANKS)
def test_blank_texts_are_refused(name, blank):
    with pytest.raises(ValueError, match=rf"^`{name}`.* must not be blank, but got "):
        request(**{name: blank})


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_texts_that_are_no_str_are_refused(name):
    with pytest.raises(TypeError, match=rf"^`{name}`.* must be a str, but got int: 3\.$"):
        request(**{name: 3})


@pytest.mark.parametrize("name", ["prompt", "phrasings", "implications", "contrasts"])
@pytest.mark.parametrize("template", ["plays the", "{} and {} play the", "{0} plays the"])
def test_templates_without_exactly_one_slot_are_refused(name, template):
    value = {"prompt": template, "phrasings": ("{} plays", template)}.get(name, (("{} plays", template),))
    with pytest.raises(ValueError, match=rf"^`{name}` of edit '2' must hold exactly one {{}} for the subject, but got"):
        request(**{name: value})


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (["{} on"], TypeError, "must be a tuple, but got list"),
        ("{} on", TypeError, "must be a tuple, but got str"),
        ((3,), TypeError, "must be a str, but got int"),
        (("\n",), ValueError, "must not be blank"),
    ],
)
def test_groups_that_are_no_tuples_of_texts_are_refused(value, error, message):
    with pytest.raises(error, match=rf"^`phrasings` of edit '2' {message}"):
        request(phrasings=value)
    for name in ("implications", "contrasts"):
        with pytest.raises(error, match=rf"^`{name}` of edit '2' {message}"):
            request(**{name: (value,)})


def test_aliases_are_other_names_of_the_subject_each_once():
    named = request(aliases=(" Yasuda ", "Toko Yasuda", "Toko", "Yasuda", " Toko Yasuda\n"))
    assert named.aliases == ("Yasuda", "Toko")
    assert request().aliases == ()


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (["Toko"], TypeError, "must be a tuple, but got list"),
        ("Toko", TypeError, "must be a tuple, but got str"),
        (("Toko", 3), TypeError, "must be a str, but got int"),
        (("Toko", " "), ValueError, "must not be blank"),
    ],
)
def test_malformed_aliases_are_refused(value, error, message):
    with pytest.raises(error, match=rf"^`aliases` of edit '2' {message}"):
        request(aliases=value)


def test_a_request_goes_through_json_and_back():
    full = request(
        relation="P1303",
        phrasings=("{} is good at the",),
        implications=(("The maker of the instrument of {} is",),),
        contrasts=(("{} lives in", "The home of {} is in"),),
        aliases=("Yasuda", "Toko"),
    )
    fields = json.loads(json.dumps(dataclasses.asdict(full)))
    assert request_from(fields) == full
    del fields["aliases"]  # as in older files
    assert request_from(fields) == dataclasses.replace(full, aliases=())


@pytest.mark.parametrize("name", ["implications", "contrasts"])
def test_questions_without_a_phrasing_are_refused(name):
    with pytest.raises(ValueError, match=f"^`{name}` of edit '2' must give each question a phrasing"):
        request(**{name: (("{} lives in",), ())})


@pytest.mark.parametrize("target_new", ["guitar", " guitar\n"])
def test_an_edit_that_changes_nothing_is_refused(target_new):
    with pytest.raises(ValueError, match="`target_new` of edit '2' must differ from `target_true`, but both are 'gui"):
        request(target_new=target_new)


def test_edits_that_go_together_are_accepted():
    other = request(edit_id="3", prompt="{} lives in", target_new="Lima")
    twin = request(edit_id="4", prompt="{} is good at the")  # another wording, the same object
    check_requests([request(), other, twin, request(edit_id="5", subject="Ann", target_new="drums")])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, r"^`edits` must have different ids, but got '2' more than once\.$"),
        (
            {"edit_id": "3", "target_new": "drums"},
            "^`edits` must give one fact one object, but '2' gives 'piano' and '3' gives 'drums' to 'Toko Yasuda plays",
        ),
        (
            {"edit_id": "3", "target_new": "drums", "prompt": "{} is good at the", "relation": "P1303"},
            "^`edits` must give one fact one object, but '2' gives 'piano' and '3' gives 'drums'",
        ),
    ],
)
def test_edits_that_cannot_be_in_force_together_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        check_requests([request(relation="P1303"), request(**{"relation": "P1303", **changes})])


def test_one_fact_with_two_objects_is_refused_in_one_line():
    told = [
        request(relation="P1303"),
        request(edit_id="3", target_new="drums", relation="P1303", prompt="{} is good at the"),
        request(edit_id="4", target_new="harp"),
        request(edit_id="5", prompt="{} lives in", target_new="Lima"),
        request(edit_id="6", subject="Ann", target_new="oboe", relation="P1303"),
    ]
    head = "`edits` must give one fact one object, but '2' gives 'piano' and"
    reasons = {
        1: f"{head} '3' gives 'drums' to 'Toko Yasuda is good at the'; leave one out.",
        2: f"{head} '4' gives 'harp' to 'Toko Yasuda plays the'; leave one out.",
    }
    assert conflicts(told) == reasons
    with pytest.raises(ValueError, match=f"^{re.escape(reasons[1])}$"):
        check_requests(told)
    assert conflicts([told[0], *told[3:]]) == {}


def test_the_first_of_three_objects_is_kept():
    told = [request(edit_id=str(n), target_new=name) for n, name in enumerate(("drums", "harp", "drums", "oboe"))]
    assert list(conflicts(told)) == [1, 3]


def test_an_alias_that_is_the_subject_of_another_edit_is_refused_in_one_line():
    told = [
        request(aliases=("Yasuda", "Ann")),
        request(edit_id="3", subject="Ann", aliases=("Annie",)),
        request(edit_id="4", prompt="{} lives in", aliases=("Yasuda",)),  # one subject, one alias
    ]
    reason = "`aliases` of edit '2' must not be the subject of another edit, but 'Ann' is that of '3'; leave it out."
    assert shared_names(told) == {0: {"Ann": reason}}
    with pytest.raises(ValueError, match=f"^{re.escape(reason)}$"):
        check_requests(told)
    assert shared_names([told[0], told[2]]) == {}
    check_requests([told[0], told[2]])


def test_no_edit_is_refused():
    with pytest.raises(ValueError, match=r"^`edits` must hold at least one edit, but got none\.$"):
        check_requests([])


def test_probe_takes_a_condition_or_none():
    assert probe(answers=("pound", "lira")).condition_answers == ()
    assert probe(condition_prompt="q", condition_answers=("b",)).condition_prompt == "q"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"prompt": " "}, ValueError, "`prompt` must not be blank"),
        ({"answers": ()}, ValueError, "`answers` of probe 'p' must hold at least one answer"),
        ({"answers": ("a", "")}, ValueError, "`answers` of probe 'p' must not be blank"),
        ({"answers": "a"}, TypeError, "`answers` of probe 'p' must be a tuple, but got str"),
        ({"condition_prompt": "q"}, ValueError, "must be given together or not at all"),
        ({"condition_answers": ("b",)}, ValueError, "must be given together or not at all"),
        ({"condition_prompt": "q", "condition_answers": "b"}, TypeError, "`condition_answers` of probe 'p' must be a"),
    ],
)
def test_malformed_probes_are_refused(changes, error, message):
    with pytest.raises(error, match=message):
        probe(**changes)


def test_query_holds_the_names_of_every_entity():
    asked = Query(prompt="p", answers=(("Ann", "Annie"), ("7",)))
    assert asked.answers == (("Ann", "Annie"), ("7",))
    assert len({asked, Query(prompt="p", answers=(("Ann", "Annie"), ("7",)))}) == 1


@pytest.mark.parametrize(
    ("prompt", "answers", "error", "message"),
    [
        (" ", (("a",),), ValueError, "`prompt` must not be blank"),
        ("p", (), ValueError, "`answers` of query 'p' must give every entity a name, but got"),
        ("p", (("a",), ()), ValueError, "`answers` of query 'p' must give every entity a name, but got"),
        ("p", (("a", " "),), ValueError, "`answers` of query 'p' must not be blank"),
        ("p", ("a",), TypeError, "`answers` of query 'p' must be a tuple, but got str"),
        ("p", ((3,),), TypeError, "`answers` of query 'p' must be a str, but got int"),
    ],
)
def test_malformed_queries_are_refused(prompt, answers, error, message):
    with pytest.raises(error, match=f"^{message}"):
        Query(prompt=prompt, answers=answers)


def test_ripple_test_asks_any_query_unless_told():
    asked = Query(prompt="p", answers=(("a",),))
    test = RippleTest(axis="Forgetfulness", queries=(asked,))
    assert (test.conditions, test.every, test.filterable) == ((), False, True)
    assert hash(test) == hash(RippleTest(axis="Forgetfulness", queries=(asked,), every=False))


def test_ripple_tests_need_a_query_and_a_known_axis():
    with pytest.raises(ValueError, match="`queries` of a test of Forgetfulness must hold at least one query"):
        RippleTest(axis="Forgetfulness", queries=())
    with pytest.raises(ValueError, match=r"^`axis` must be one of Relation_Specificity, .*, but got 'Spec'"):
        RippleTest(axis="Spec", queries=(Query(prompt="p", answers=(("a",),)),))  # type: ignore[arg-type]


def test_case_holds_its_prompts():
    case = EditCase(request=request(), paraphrase_prompts=("Yasuda is incredible at",), subject_aliasing=(probe(),))
    assert case.paraphrase_prompts == ("Yasuda is incredible at",)
    assert case.subject_aliasing == (probe(),)
    assert case.neighborhood_prompts == ()
    assert case.attribute_prompts == case.generation_prompts == ()
    assert case.compositionality_1 == case.locality == case.portability == ()
    assert case.ripple == ()
    assert hash(case) == hash(dataclasses.replace(case))


@pytest.mark.parametrize(
    "name", ["paraphrase_prompts", "neighborhood_prompts", "attribute_prompts", "generation_prompts"]
)
@pytest.mark.parametrize(("value", "error"), [(["p"], TypeError), ("p", TypeError), (("",), ValueError)])
def test_malformed_prompts_of_a_case_are_refused(name, value, error):
    with pytest.raises(error, match=f"^`{name}` of edit '2' must"):
        EditCase(request=request(), **{name: value})


@pytest.mark.parametrize(
    ("new", "true"),
    [
        ("Bogot\u00e1", unicodedata.normalize("NFD", "Bogot\u00e1")),
        ("Paris", "paris"),
        ("O'Hare", "O\u2019Hare"),
        ("New York", "New\u00a0York"),
    ],
)
def test_an_edit_that_changes_the_spelling_only_is_refused(new, true):
    with pytest.raises(
        ValueError, match=r"^`target_new` of edit '2' must differ from `target_true`, but both are "
    ) as e:
        request(target_new=new, target_true=true)
    assert f"also spelt {true!a}; case, apostrophes, spaces and NFD do not count." in str(e.value)
    assert request(target_new=new).target_new == new  # kept as it is written


def test_other_letters_are_another_object():
    assert request(target_new="Pena", target_true="Pe\u00f1a").target_new == "Pena"
    assert request(target_new="10\u00b2", target_true="102").target_true == "102"


def test_one_fact_in_two_spellings_is_one():
    told = request(prompt="{} is Zo\u00eb's", subject="Ren\u00e9  O'Neill")
    spelt = request(
        edit_id="3", prompt="{} is Zoe\u0308\u2019s", subject="RENE\u0301\u00a0O\u2019Neill", target_new="drums"
    )
    assert list(conflicts([told, spelt])) == [1]
    assert conflicts([told, dataclasses.replace(spelt, target_new="Piano")]) == {}


def test_an_alias_is_the_subject_of_another_edit_in_any_spelling():
    told = [request(aliases=("Rene\u0301",)), request(edit_id="3", subject="Ren\u00e9")]
    assert list(shared_names(told)[0]) == ["Rene\u0301"]
    own = request(subject="Ren\u00e9", aliases=("RENE\u0301",))
    assert shared_names([own]) == {}


def test_an_id_is_made_alike_from_every_form():
    ids = {request(edit_id="", subject=subject).edit_id for subject in ("Ren\u00e9 Lee", "Rene\u0301\u00a0LEE")}
    assert ids == {"ren\u00e9-lee-plays-the"}


@pytest.mark.parametrize("name", ["edit_id", "prompt", "subject", "target_new", "target_true", "phrasings", "aliases"])
def test_half_a_surrogate_pair_is_refused(name):
    text = "{} a\ud834"
    with pytest.raises(ValueError, match=rf"^`{name}`.* must not hold half of a surrogate pair, but got '.*\\ud834'; "):
        request(**{name: (text,) if name in ("phrasings", "aliases") else text})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"relation": None}, "`relation` of edit '2' must be a str, but got NoneType: None."),
        ({"relation": 19}, "`relation` of edit '2' must be a str, but got int: 19."),
        (
            {"implications": None},
            "`implications` of edit '2' must be a tuple, but got NoneType: None; write (..., ...).",
        ),
        (
            {"implications": "{} on"},
            "`implications` of edit '2' must be a tuple, but got str: '{} on'; write ('{} on',).",
        ),
        ({"contrasts": ("{} on",)}, "`contrasts` of edit '2' must be a tuple, but got str: '{} on'; write ('{} on',)."),
        ({"edit_id": "", "prompt": 3}, "`prompt` must be a str, but got int: 3."),
        ({"edit_id": "", "subject": None}, "`subject` must be a str, but got NoneType: None."),
    ],
)
def test_values_of_another_type_are_refused_in_one_line(changes, message):
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        request(**changes)


@pytest.mark.parametrize(
    ("make", "fields", "message"),
    [
        (
            Probe,
            {"answers": ("a",), "condition_prompt": None},
            "`condition_prompt` of probe 'p' must be a str, but got NoneT",
        ),
        (Query, {"answers": None}, "`answers` of query 'p' must be a tuple, but got NoneType: None; "),
        (Query, {"answers": "ab"}, "`answers` of query 'p' must be a tuple, but got str: 'ab'; write ('ab',)."),
    ],
)
def test_questions_of_another_type_are_refused_in_one_line(make, fields, message):
    with pytest.raises(TypeError, match=f"^{re.escape(message)}"):
        make(prompt="p", **fields)


@pytest.mark.parametrize(
    ("make", "fields", "message"),
    [
        (
            RippleTest,
            {"queries": ("p",)},
            "an item of `queries` of a test of Forgetfulness must be a Query, but got str: 'p'.",
        ),
        (RippleTest, {"queries": []}, "`queries` of a test of Forgetfulness must be a tuple, but got list: []; "),
        (EditCase, {"request": "x"}, "`request` of a case must be an EditRequest, but got str: 'x'."),
        (EditCase, {"locality": ("p",)}, "an item of `locality` of edit '2' must be a Probe, but got str: 'p'."),
        (EditCase, {"ripple": probe()}, "`ripple` of edit '2' must be a tuple, but got Probe: "),
        (check_requests, {"requests": request()}, "`edits` must be a Sequence, but got EditRequest: "),
        (check_requests, {"requests": ["x"]}, "an item of `edits` must be an EditRequest, but got str: 'x'."),
        (check_requests, {"requests": "x"}, "an item of `edits` must be an EditRequest, but got str: 'x'."),
    ],
)
def test_parts_of_another_type_are_refused_in_one_line(make, fields, message):
    others: dict[Any, dict[str, Any]] = {RippleTest: {"axis": "Forgetfulness"}, EditCase: {"request": request()}}
    with pytest.raises(TypeError, match=f"^{re.escape(message)}") as caught:
        make(**{**others.get(make, {}), **fields})
    assert "\n" not in str(caught.value)
