from dataclasses import replace
from threading import Thread

import pytest
import torch
from filelock import FileLock

from mega_pl.editors import Mega
from mega_pl.editors.protocol import Routed
from mega_pl.edits import RouterConfig
from mega_pl.fitting import EditFitter, FitConfig, MapConfig, PromptConfig, fit
from tests.editors.conftest import DARRIEUX, FRANCE, GERMANY, last_logits

REQUESTS = [FRANCE, GERMANY, DARRIEUX]
CONFIG = FitConfig(
    sites=("resid_mid.2", "resid_post.3"),
    maps=MapConfig(strength=0.7),
    router=RouterConfig(layer=1),
    prompts=PromptConfig(prefixes=1),
)


def test_it_is_the_bank_that_is_fitted_and_applied(backbone):
    bank = fit(backbone, REQUESTS, CONFIG)
    prompts = [request.filled for request in REQUESTS]
    with bank.apply(backbone) as use:
        wanted = last_logits(backbone, *prompts)
    with Mega(CONFIG).edit(backbone, REQUESTS) as edited:
        assert torch.equal(last_logits(backbone, *prompts), wanted)
        assert edited.fired == use.fired == ["france", "germany", "darrieux"]


def test_routes_are_taken_and_given_back_to_the_router(backbone):
    bare = last_logits(backbone, FRANCE.filled, GERMANY.filled)
    with Mega(CONFIG).edit(backbone, REQUESTS) as edited:
        edited.route(["germany", None])
        logits = last_logits(backbone, FRANCE.filled, GERMANY.filled)
        assert edited.fired == ["germany", None]
        assert torch.equal(logits[1], bare[1])
        assert not torch.equal(logits[0], bare[0])
        edited.route(forced=True)
        last_logits(backbone, "He works as a")
        assert edited.fired != [None]
        edited.route()
        last_logits(backbone, GERMANY.filled)
        assert edited.fired == ["germany"]
        with pytest.raises(KeyError, match="`edits` must name edits in force, but got 'rome'"):
            edited.route(["rome"])


def test_rows_that_differ_in_routing_share_a_fit(backbone, tmp_path, monkeypatch):
    prompts = [request.filled for request in REQUESTS]
    with Mega(CONFIG, folder=str(tmp_path)).edit(backbone, REQUESTS):
        wanted = last_logits(backbone, *prompts)
    monkeypatch.setattr(EditFitter, "bank", lambda *_: pytest.fail("fitted again"))
    with Mega(CONFIG, folder=str(tmp_path)).edit(backbone, REQUESTS) as edited:
        assert torch.equal(last_logits(backbone, *prompts), wanted)
        last_logits(backbone, "He works as a", "The capital of Spain is")
        assert edited.fired == [None, None]
    with Mega(CONFIG, routing="subject", folder=str(tmp_path)).edit(backbone, REQUESTS) as edited:
        last_logits(backbone, "He works as a", "What do people eat in France?")
        assert edited.fired == [None, "france"]
    with Mega(CONFIG, routing="relation", folder=str(tmp_path)).edit(backbone, REQUESTS) as edited:
        last_logits(backbone, "The capital of Spain is")
        assert edited.fired in (["france"], ["germany"])
    with Mega(CONFIG, routing="always", folder=str(tmp_path)).edit(backbone, REQUESTS) as edited:
        last_logits(backbone, "He works as a")
        assert edited.fired != [None]
    with Mega(CONFIG, guard=False, folder=str(tmp_path)).edit(backbone, REQUESTS) as edited:
        assert isinstance(edited, Routed)
        assert edited.use.guard is None
    with Mega(CONFIG, routing="oracle", folder=str(tmp_path)).edit(backbone, REQUESTS) as edited:
        assert edited.oracle
    with pytest.raises(pytest.fail.Exception, match="fitted again"):  # control: other settings are another bank
        Mega(replace(CONFIG, seed=1), folder=str(tmp_path))._bank(backbone, REQUESTS)


def test_a_bank_that_is_half_there_is_fitted_anew_and_one_that_is_being_fitted_is_waited_for(backbone, tmp_path):
    editor = Mega(CONFIG, folder=str(tmp_path))
    with editor.edit(backbone, REQUESTS):
        wanted = last_logits(backbone, FRANCE.filled)
    (config,) = tmp_path.glob("*/edit_config.json")
    config.unlink()  # what a killed save leaves
    bank = config.parent
    lock, states = FileLock(f"{bank}.lock"), []
    lock.acquire()

    def run():
        with editor.edit(backbone, REQUESTS):
            states.append(last_logits(backbone, FRANCE.filled))

    thread = Thread(target=run)
    thread.start()
    thread.join(1)
    assert thread.is_alive()
    lock.release()
    thread.join()
    assert torch.equal(states[0], wanted)


def test_no_other_way_to_route_is_known():
    with pytest.raises(ValueError, match="`routing` must be one of own, oracle, subject, relation, always, but got 'n"):
        Mega(CONFIG, routing="nobody")  # type: ignore[arg-type]


def test_a_site_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"a site must be written KIND\.LAYER"):
        FitConfig(sites=("resid.2",))
