"""A bank grows, shrinks, is merged and goes back, and what it keeps stays what it was, to the bit."""

import linecache
import re
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch

from mega_pl.edits import EditBank, EditCase, EditRequest
from mega_pl.edits.routing import CentreRouter
from mega_pl.edits.status import _bytes_of
from mega_pl.edits.storage import bank_tensors
from mega_pl.fitting import FitConfig, MapConfig, fit
from mega_pl.fitting.refinement import RefineConfig
from tests.edits.conftest import FRANCE, GERMANY, ITALY, SPAIN, edit

MADRID = edit("paris-no-more", "France", "Madrid", "Paris")
PROMPTS = [r.filled for r in (FRANCE, GERMANY, ITALY, SPAIN)] + ["Rome is a city in"]


def tensors_of(bank, edit_id):
    """What an edit's maps are, without padding."""
    i = bank.index(edit_id)
    rows = range(bank.places[i], bank.places[i] + len(bank.objects[i]) + 1)
    return [t for maps in bank.maps.values() for row in rows for t in vars(maps[row]).values()]


def same(one, other):
    assert len(one) == len(other)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def assert_is(bank, wanted):
    """To the bit, but for the history."""
    assert bank.requests == wanted.requests
    assert bank.objects == wanted.objects
    assert bank.router.state()[0] == wanted.router.state()[0]
    one, other = bank_tensors(replace(bank, history=())), bank_tensors(replace(wanted, history=()))
    assert list(one) == list(other)
    same(list(one.values()), list(other.values()))


def last_logits(lm, prompts, bank=None, **options):
    encoded = lm.encode(prompts)
    if bank is None:
        return lm.last_logits(encoded)
    with bank.apply(lm, **options):
        return lm.last_logits(encoded)


def test_new_edits_leave_the_old_ones_to_the_bit(lm, three):
    bank = three.add(lm, [SPAIN])
    assert bank.ids == ("france", "germany", "italy", "spain")
    assert three.ids == ("france", "germany", "italy")
    for edit_id in three.ids:
        same(tensors_of(bank, edit_id), tensors_of(three, edit_id))
    named = [*three.ids, None]
    assert torch.equal(
        last_logits(lm, [*PROMPTS[:3], PROMPTS[4]], bank, edits=named),
        last_logits(lm, [*PROMPTS[:3], PROMPTS[4]], three, edits=named),
    )
    with bank.apply(lm) as use:
        lm.last_logits(lm.encode(PROMPTS))
    assert use.fired == ["france", "germany", "italy", "spain", None]


def test_an_edit_is_fitted_later_as_it_is_alone(lm, three):
    shift = MapConfig(estimator="mean_shift", whole=False)
    for one, other in (
        (three.add(lm, [SPAIN]), fit(lm, [SPAIN])),
        (fit(lm, [FRANCE], FitConfig(maps=shift)).add(lm, [SPAIN]), fit(lm, [SPAIN], FitConfig(maps=shift))),
    ):
        for a, b in zip(tensors_of(one, "spain"), tensors_of(other, "spain"), strict=True):
            assert a.shape == b.shape
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_a_refined_bank_refines_what_it_gets(lm):
    bank = fit(lm, [FRANCE], FitConfig(maps=MapConfig(whole=False)))
    refined = replace(bank, settings={**bank.settings, "refine": vars(RefineConfig(steps=3))})
    plain, more = bank.add(lm, [SPAIN]), refined.add(lm, [SPAIN])
    assert any(
        not torch.equal(a, b) for a, b in zip(tensors_of(plain, "spain"), tensors_of(more, "spain"), strict=True)
    )
    same(tensors_of(plain, "france"), tensors_of(more, "france"))


def test_cases_are_taken_for_their_requests(lm, three):
    assert three.add(lm, [EditCase(request=SPAIN)]).ids[-1] == "spain"


def test_merged_banks_answer_as_each_does(lm, three):
    other = fit(lm, [SPAIN])
    bank = three.merge(other)
    assert bank.ids == (*three.ids, "spain")
    assert torch.equal(last_logits(lm, PROMPTS, bank)[:3], last_logits(lm, PROMPTS, three)[:3])
    same(tensors_of(bank, "spain"), tensors_of(other, "spain"))
    added = three.add(lm, [SPAIN])
    assert added.router.state()[0] == bank.router.state()[0]
    torch.testing.assert_close(added.router.state()[1]["questions"], bank.router.state()[1]["questions"])


def test_many_edits_are_taken_out_at_once(lm, three):
    bank = three.remove("italy", "france")
    assert bank.ids == ("germany",)
    same(tensors_of(bank, "germany"), tensors_of(three, "germany"))
    left, bare, whole = (last_logits(lm, PROMPTS, b) for b in (bank, None, three))
    assert torch.equal(left[[0, 2, 3, 4]], bare[[0, 2, 3, 4]])
    assert torch.equal(left[1], whole[1])
    assert not torch.equal(left[1], bare[1])
    assert three.remove() is three
    with pytest.raises(KeyError, match="a bank must keep at least one edit, but all would go"):
        three.remove("france", "germany", "italy")


def test_an_edit_of_the_same_id_or_fact_is_replaced(lm, three):
    by_id = three.replace(lm, [replace(FRANCE, target_new="Berlin")])
    assert by_id.ids == ("germany", "italy", "france")
    assert by_id["france"].target_new == "Berlin"
    by_fact = three.replace(lm, [MADRID])
    assert by_fact.ids == ("germany", "italy", "paris-no-more")
    for bank in (by_id, by_fact):
        same(tensors_of(bank, "italy"), tensors_of(three, "italy"))
    alone = fit(lm, [FRANCE])
    assert alone.replace(lm, [MADRID]).rollback().ids == ("france",)
    with pytest.raises(KeyError, match="or give its fact another object, but 'spain' does neither; use `add`"):
        three.replace(lm, [SPAIN])


@pytest.mark.parametrize("way", ["fit", "add", "add both", "merge"])
def test_the_later_edit_of_a_fact_wins_and_both_are_named(lm, way):
    line = (
        "'paris-no-more' takes the place of 'france', because the later edit of a fact wins: 'The capital of France is'"
    )
    first, german, other = fit(lm, [FRANCE, GERMANY]), fit(lm, [GERMANY]), fit(lm, [MADRID])
    ways = {
        "fit": lambda: fit(lm, [FRANCE, GERMANY, MADRID]),
        "add": lambda: first.add(lm, [MADRID]),
        "add both": lambda: german.add(lm, [FRANCE, MADRID]),
        "merge": lambda: first.merge(other),
    }
    with pytest.warns(UserWarning, match=re.escape(f"{line} goes on with 'Madrid' instead of 'Rome'.")) as seen:
        bank = ways[way]()
    assert bank.ids == ("germany", "paris-no-more")
    named = [warning for warning in seen if "come out whole" not in str(warning.message)]  # as random models do not
    assert len(named) == 1
    assert linecache.getline(named[0].filename, named[0].lineno).strip().startswith(f'"{way}": lambda')


def test_the_same_object_twice_is_no_conflict(lm, three):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".* do not come out whole")
        assert len(three.add(lm, [replace(FRANCE, edit_id="again")])) == 4


@pytest.mark.parametrize(
    "way",
    [
        lambda lm, three: fit(lm, [FRANCE, replace(SPAIN, edit_id="france")]),
        lambda lm, three: three.add(lm, [replace(SPAIN, edit_id="france")]),
        lambda lm, three: three.add(lm, [SPAIN, SPAIN]),
        lambda lm, three: three.replace(lm, [FRANCE, FRANCE]),
        lambda lm, three: three.merge(three.remove("germany")),
    ],
)
def test_one_id_twice_is_refused(lm, three, way):
    with pytest.raises(ValueError, match="must have different ids, but"):
        way(lm, three)


def test_banks_that_do_not_go_together_are_not_merged(lm, three, tiny_backbone):
    other = fit(lm, [SPAIN])
    for changes, name in (
        ({"strength": 0.5}, "strength"),
        ({"backbone": {**other.backbone, "weights": "other"}}, "weights"),
        ({"maps": dict(list(other.maps.items())[:1])}, "sites"),
        ({"maps": {site: maps.cast(torch.float16) for site, maps in other.maps.items()}}, "maps.dtype"),
    ):
        with pytest.raises(ValueError, match=f"banks must have the same `{name}` to be merged, but got"):
            three.merge(replace(other, **changes))
    centre = CentreRouter(torch.zeros(1, 4), torch.ones(1))
    with pytest.raises(ValueError, match="routers must be of one kind"):
        three.merge(replace(other, router=centre))
    with pytest.raises(ValueError, match="routers must be of one kind"):
        replace(other, router=centre).merge(three)
    assert three.merge(replace(other, backbone={**other.backbone, "name": "alias"})).ids[-1] == "spain"  # control


def test_what_cannot_grow_says_so(lm, three, tiny_backbone):
    with pytest.raises(ValueError, match="`settings` of the bank must say its `maps` for it to grow, but do not"):
        replace(three, settings={}).add(lm, [SPAIN])
    strange = replace(three, settings={**three.settings, "maps": {"colour": 1}})
    with pytest.raises(ValueError, match=r"must say its `maps` for it to grow, but .*colour"):
        strange.add(lm, [SPAIN])
    with pytest.raises(ValueError, match="must be used on the backbone it was fitted on"):
        three.add(tiny_backbone("llama"), [SPAIN])
    with pytest.raises(ValueError, match="must hold at least one edit, but got none"):
        three.add(lm, [])


def test_a_bank_goes_back_to_any_point_to_the_bit(lm, three):
    points = [three, three.add(lm, [SPAIN])]
    points.append(points[-1].remove("germany", "spain"))
    points.append(points[-1].replace(lm, [replace(FRANCE, target_new="Berlin")]))
    points.append(points[-1].merge(fit(lm, [replace(SPAIN, target_new="London")])))
    points.append(points[-1].remove("italy", "france"))
    last = points[-1]
    assert [str(change) for change in last.history] == [
        "add +spain",
        "remove -germany, spain",
        "replace +france -france",
        "merge +spain",
        "remove -italy, france",
    ]
    for point, wanted in enumerate(points):
        assert_is(last.rollback(point), wanted)
        assert len(last.rollback(point).history) == point
    assert_is(last.rollback(), points[-2])
    assert_is(last.rollback(-5), three)
    for point in (-6, 6):
        with pytest.raises(IndexError, match=r"`point` must lie in \[-5, 5\] for this bank, but got"):
            last.rollback(point)


def test_a_history_is_saved_and_costs_what_was_lost(lm, three, tmp_path):
    bank = three.add(lm, [SPAIN]).remove("germany").replace(lm, [replace(SPAIN, target_new="Paris")])
    loaded = EditBank.from_pretrained(bank.save_pretrained(tmp_path / "a"))
    assert_is(loaded, bank)
    for point in range(4):
        assert_is(loaded.rollback(point), bank.rollback(point))
    sizes = {name: tensor.nbytes for name, tensor in bank_tensors(bank).items()}
    lost = sum(size for name, size in sizes.items() if name.startswith("history."))
    gone = bank.rollback(2).rollback(1)
    maps = sum(
        t.nbytes for name, t in bank_tensors(gone.remove("france", "italy").rollback(0)).items() if "maps" in name
    )
    assert 0 < lost < maps
    assert not any("references" in name for name in sizes if name.startswith("history."))
    short = EditBank.from_pretrained(bank.save_pretrained(tmp_path / "b", history=False))
    assert short.history == ()
    assert_is(short, bank)
    assert "Germany" not in (tmp_path / "b" / "edit_config.json").read_text("utf-8")
    assert "Germany" in (tmp_path / "a" / "edit_config.json").read_text("utf-8")  # control


def test_the_status_is_a_table(lm, three):
    bank = three.remove("germany")
    lines = bank.status().splitlines()
    assert lines[0].startswith(f"2 edits of gpt2 at {', '.join(map(str, bank.maps))}; maps ")
    assert lines[1] == "history: remove -germany"
    assert lines[5].startswith("| france | The capital of France is | Paris | Rome | ")
    assert all(line.endswith("| not whole |") for line in lines[5:])  # of a random model
    assert three.status().splitlines()[1] == "history: as fitted"


@pytest.mark.parametrize("config", [MapConfig(), MapConfig(directions=2, dtype="int8")], ids=lambda c: c.dtype)
def test_the_status_tells_the_bytes_of_maps(lm, config):
    (maps, *_) = fit(lm, [SPAIN], FitConfig(maps=config)).maps.values()
    sizes = [sum(tensor.nbytes for tensor in maps[row].tensors) for row in range(len(maps))]
    assert (_bytes_of(maps) - maps.ranks.element_size()).tolist() == sizes


def test_the_status_names_what_the_model_does_not_write(three):
    bank = replace(three, missed={"france": "a"})
    assert [line.endswith("| not whole |") for line in bank.status().splitlines()[5:]] == [
        request.edit_id == "france" for request in bank.requests
    ]
    assert bank.remove("france").missed == {}
    assert bank.remove("france").rollback().missed == {"france": "a"}
    assert bank.remove(*[name for name in bank.ids if name != "france"]).missed == {"france": "a"}


def test_edits_are_switched_off_for_a_time(lm, three):
    bare, whole = last_logits(lm, PROMPTS), last_logits(lm, PROMPTS, three)
    with three.apply(lm) as use:
        with use.only("france"):
            only = lm.last_logits(lm.encode(PROMPTS))
            assert use.fired == ["france", None, None, None, None]
            with use.disabled("france"):
                assert torch.equal(lm.last_logits(lm.encode(PROMPTS)), bare)
        with use.disabled("france", "italy"):
            off = lm.last_logits(lm.encode(PROMPTS))
            assert use.fired == [None, "germany", None, None, None]
        assert torch.equal(lm.last_logits(lm.encode(PROMPTS)), whole)
        for switch in (use.only, use.disabled):
            with pytest.raises(KeyError, match="`edits` must name edits in force, but got 'nobody'"), switch("nobody"):
                pass
    for part, row in ((only, 0), (off, 1)):
        others = [i for i in range(5) if i != row]
        assert torch.equal(part[others], bare[others])
        assert torch.equal(part[row], whole[row])
        assert not torch.equal(part[row], bare[row])


def test_a_switch_is_undone_by_an_error_and_stands_over_fixed_rows(lm, three):
    bare = last_logits(lm, PROMPTS)
    handle = three.attach(lm)
    handle.use.fix(["france"] * 5)
    with handle.disabled("france"):
        assert torch.equal(lm.last_logits(lm.encode(PROMPTS)), bare)
    with pytest.raises(RuntimeError, match="midway"), handle.disabled("france"):
        raise RuntimeError("midway")
    lm.last_logits(lm.encode(PROMPTS))
    assert handle.use.fired == ["france"] * 5
    with handle.only("germany"):
        lm.last_logits(lm.encode(PROMPTS))
        assert handle.use.fired == [None] * 5
    handle.remove()


def test_a_name_that_is_an_alias_and_a_subject_is_refused(lm, three):
    alias = EditRequest(
        edit_id="gaul",
        prompt="The capital of {} is",
        subject="Gaul",
        target_new="Rome",
        target_true="Paris",
        aliases=("France",),
    )
    for grown in (lambda: three.add(lm, [alias]), lambda: three.merge(fit(lm, [alias]))):
        with pytest.raises(
            ValueError, match="'gaul' must not be the subject of another edit, but 'France' is that of 'france'"
        ):
            grown()
    with pytest.raises(ValueError, match="but 'France' is that of 'france'"):
        fit(lm, [alias]).add(lm, [FRANCE])


def test_a_bank_says_in_short_what_it_is(lm, three):
    assert repr(three).startswith("EditBank(3 edits of gpt2 at resid_mid.")
    assert repr(lm) == "Backbone('gpt2', gpt2, 4 blocks of width 32)"


def test_what_is_no_model_and_no_folder_is_refused(three, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model: Any = "lab-gpt2"
    with pytest.raises(TypeError, match="`backbone` must be a Backbone, but got str: 'lab-gpt2'"):
        fit(model, [FRANCE])
    with pytest.raises(TypeError, match="`backbone` must be a Backbone"), three.apply(model):
        pass
    with pytest.raises(ValueError, match="`folder` must name a place, but got ' '"):
        three.save_pretrained(" ")
    assert not list(tmp_path.iterdir())
    with pytest.raises(IndexError, match="a bank must have changed to be rolled back"):
        three.rollback()
    with pytest.raises(KeyError, match="a bank must keep at least one edit, but all would go"):
        three.remove(*three.ids)
