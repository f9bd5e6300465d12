"""What edits in force cost while text is written, and whether serving leaves anything behind.

    OMP_NUM_THREADS=1 python benchmarks/serving.py lab-gpt2

Speeds are ratios within one run: bare and edited generations take turns, and the medians are compared.
"""

import argparse
import gc
import resource
import statistics
import threading
import time

from mega_pl import Backbone, EditBank, EditRequest, load
from mega_pl.fitting import fit
from mega_pl.lab.data import LabDataModule

NEUTRAL = "The museum opened its doors at noon and many people came to see what was new."


def main(args: list[str] | None = None) -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "model", nargs="?", default="lab-gpt2", help="lab-gpt2, lab-llama, a folder or a name on the hub"
    )
    parser.add_argument("--edits", type=int, default=20, help="of the lab")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--tokens", type=int, default=120)
    parser.add_argument("--requests", type=int, default=500, help="of each of two threads")
    parser.add_argument("--cycles", type=int, default=1000)
    parser.add_argument("--generations", type=int, default=10000)
    options = parser.parse_args(args)
    backbone = load(options.model)
    data = LabDataModule(split="test", limit=options.edits)
    data.setup("fit")
    requests = [case.request for case in data.cases]
    bank = fit(backbone, requests)
    rows = [
        ("decoding with an edit in force / bare", f"{speed(backbone, bank, options):.3f}"),
        ("decoding beside a bank that is silent / bare", f"{speed(backbone, bank, options, silent=True):.3f}"),
        ("prefill of 32 prompts, half of which fire / bare", f"{prefill(backbone, bank, options):.3f}"),
        (f"2 threads x {options.requests} requests, as alone", threads(backbone, bank, requests, options.requests)),
        (f"{options.cycles} times on and off: hooks, growth of memory", cycles(backbone, bank, options.cycles)),
        (f"{options.generations} generations: growth of memory", generations(backbone, bank, options.generations)),
    ]
    print(f"| {options.model}, {len(bank)} edits | |\n| --- | --- |")
    print("\n".join(f"| {name} | {value} |" for name, value in rows))


def speed(backbone: Backbone, bank: EditBank, options: argparse.Namespace, *, silent: bool = False) -> float:
    """Tokens a second while writing, edited over bare; reading the prompt does not count."""
    prompt = "It was a quiet morning in the village." if silent else bank.requests[0].filled
    edits = [None] if silent else [bank.ids[0]]

    def decode() -> float:
        seconds = []
        for tokens in (1, options.tokens + 1):
            start = time.perf_counter()
            backbone.generate(prompt, max_new_tokens=tokens, min_new_tokens=tokens)
            seconds.append(time.perf_counter() - start)
        return seconds[1] - seconds[0]

    decode()
    bare, edited = [], []
    for _ in range(options.repeats):
        bare.append(decode())
        with bank.apply(backbone, edits=edits):
            edited.append(decode())
    return statistics.median(bare) / statistics.median(edited)


def prefill(backbone: Backbone, bank: EditBank, options: argparse.Namespace) -> float:
    """Seconds to the first token of 32 prompts, edited over bare; half of them ask an edit's question."""
    asking = [f"{NEUTRAL} {request.filled}" for request in bank.requests]
    others = [f"{NEUTRAL} Rain fell on the roof of house {i}, and" for i in range(16)]
    prompts = [prompt for pair in zip((asking * 16)[:16], others, strict=True) for prompt in pair]

    def first_token() -> float:
        start = time.perf_counter()
        backbone.generate(prompts, max_new_tokens=1)
        return time.perf_counter() - start

    first_token()
    bare, edited = [], []
    for _ in range(options.repeats):
        bare.append(first_token())
        with bank.apply(backbone) as use:
            edited.append(first_token())
            assert sum(edit is not None for edit in use.fired) == 16, use.fired
    return statistics.median(edited) / statistics.median(bare)


def threads(backbone: Backbone, bank: EditBank, requests: list[EditRequest], count: int) -> str:
    """How many answers of two threads are what each text gets alone."""
    texts = [r.filled for r in requests] + [
        p for r in requests for p in ("Rain fell.", f"{r.subject} is", "The capital of")
    ]
    groups = [texts[i : i + 1 + i % 3] for i in range(len(texts))]
    with bank.apply(backbone) as use:
        alone = [(backbone.generate(group, max_new_tokens=6), use.fired) for group in groups]
        same = [0, 0]

        def serve(thread: int) -> None:
            for n in range(count):
                i = (7 * n + thread * 3) % len(groups)
                same[thread] += (backbone.generate(groups[i], max_new_tokens=6), use.fired) == alone[i]

        workers = [threading.Thread(target=serve, args=(thread,)) for thread in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    return f"{sum(same)} of {2 * count}"


def cycles(backbone: Backbone, bank: EditBank, count: int) -> str:
    """Hooks and memory after putting a bank on and off."""
    for _ in range(20):
        bank.attach(backbone).remove()
    before = _memory()
    for _ in range(count):
        bank.attach(backbone).remove()
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in backbone.model.modules())
    return f"{hooks} hooks, {_memory() - before:.1f} MiB"


def generations(backbone: Backbone, bank: EditBank, count: int) -> str:
    """Growth of memory over many generations with a bank on."""
    prompts = [request.filled for request in bank.requests]
    with bank.apply(backbone):
        for n in range(100):
            backbone.generate(prompts[n % len(prompts)], max_new_tokens=2)
        before = _memory()
        for n in range(count):
            backbone.generate(prompts[n % len(prompts)], max_new_tokens=2)
        return f"{_memory() - before:.1f} MiB"


def _memory() -> float:
    """Resident memory in MiB."""
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


if __name__ == "__main__":
    main()
