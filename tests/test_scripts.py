"""Edits in a script that does not divide words, with a tokenizer and a small model that are made for it here."""

import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from mega_pl.backbone import Backbone
from mega_pl.edits import EditCase, EditRequest, RouterConfig
from mega_pl.fitting import FitConfig, fit
from mega_pl.fitting.prompts import REPEAT, SUPPRESS, PromptConfig
from mega_pl.protocols.sake import PROTOCOL, ask, sake_tests

CAPITALS = {"法国": "巴黎", "日本": "东京", "英国": "伦敦", "德国": "柏林", "中国": "北京", "意大利": "罗马"}
LANDMARKS = {"铁塔": "巴黎", "皇居": "东京", "大本钟": "伦敦", "国会": "柏林", "故宫": "北京", "斗兽场": "罗马"}
PHRASINGS = ("{}的首都是", "{}的首都叫做", "{}的政府在")
END = "<|end|>"


def sentences() -> list[str]:
    """True facts, and sentences that are to be repeated, whatever they say."""
    found = [p.format(c) + city + "。" for c, city in CAPITALS.items() for p in PHRASINGS] * 4
    found += [f"{place}位于{city}。" for place, city in LANDMARKS.items()] * 4
    for country, true in CAPITALS.items():
        for prompt in (p.format(country) for p in PHRASINGS):
            for new in CAPITALS.values():
                said = REPEAT.replace("{p} {o}", "{p}{o}").format(p=prompt, o=new)
                found.append(f"{said}{new}。")
                told = SUPPRESS.replace("{p} {new}", "{p}{new}").format(p=prompt, true=true, new=new)
                found.append(f"{told}{new}。")
    return found


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    """A model of four blocks that knows the facts and repeats what it is told to."""
    texts = sentences()
    trained = ByteLevelBPETokenizer(add_prefix_space=False)
    trained.train_from_iterator(texts, vocab_size=330, special_tokens=[END], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, eos_token=END, pad_token=END)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer), n_positions=512, n_embd=64, n_layer=4, n_head=4,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip
    rows = [torch.tensor([*tokenizer(text)["input_ids"], 0]) for text in texts]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    draw = torch.Generator().manual_seed(0)
    steps = 260
    for step in range(steps):
        chosen = [rows[i] for i in torch.randint(len(rows), (32,), generator=draw)]
        ids = torch.nn.utils.rnn.pad_sequence(chosen, batch_first=True)
        labels = torch.nn.utils.rnn.pad_sequence(chosen, batch_first=True, padding_value=-100)
        optimizer.param_groups[0]["lr"] = 3e-3 * min(1, (steps - step) / 100)
        optimizer.zero_grad()
        model(ids, attention_mask=(labels != -100).long(), labels=labels).loss.backward()
        optimizer.step()
    return Backbone(model.eval(), tokenizer)


CASES = [
    EditCase(
        request=EditRequest(
            edit_id=country,
            prompt=PHRASINGS[0],
            phrasings=PHRASINGS[1:2],
            subject=country,
            target_new=new,
            target_true=CAPITALS[country],
        ),
        paraphrase_prompts=(PHRASINGS[2].format(country),),
        neighborhood_prompts=tuple(f"{p}位于" for p, city in LANDMARKS.items() if city == CAPITALS[country]),
    )
    for country, new in (("法国", "罗马"), ("日本", "北京"), ("英国", "柏林"))
]


def test_the_model_knows_the_facts(backbone):
    prompts = [PHRASINGS[0].format(country) for country in CAPITALS]
    written = backbone.generate(prompts, max_new_tokens=12)
    assert [text.split("。")[0] for text in written] == list(CAPITALS.values())


def test_edits_take_and_the_bare_model_keeps_its_neighbours(backbone):
    router = RouterConfig(answer=False, noun_phrases=False, ask_aliases=False)
    bank = fit(backbone, CASES, FitConfig(prompts=PromptConfig(prefixes=0), router=router))
    assert bank.missed == {}
    with bank.apply(backbone, edits=bank.ids):
        written = backbone.generate([case.request.filled for case in CASES], max_new_tokens=12)
    assert [text.split("。")[0] for text in written] == [case.request.target_new for case in CASES]
    tests = [test for case in CASES for test in sake_tests(case)]
    edited = PROTOCOL.score(ask(backbone, bank, tests, ["oracle"])["oracle"])
    assert edited["acc"].value == 1
    assert edited["spec"].value == 1
    assert edited["spec"].bare == 1
    assert edited["acc"].bare == 0
