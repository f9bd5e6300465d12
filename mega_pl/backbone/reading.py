"""Following a model as it reads prompts and writes on after them, whatever way it is called.

A reader is asked before each forward pass what it wants to do in it. It is told every id of each row, where the prompt
of each row ends, and which columns the pass reads, so that it need not guess any of them: in `generate` from the call
itself and from what the model prepares for each step, which is known with beams, chunked prompts, caches of any kind
and assistants too; elsewhere from the pass, from a cache that has been followed from its beginning, from `labels`, or
from what `prompt_lengths` says.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MethodType
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from mega_pl.backbone.caches import forked
from mega_pl.backbone.visits import eager
from mega_pl.errors import MegaValueError

OF_TOKENS = ("input_ids", "position_ids", "token_type_ids", "cache_position")
"""Arguments of a pass that have a value for each token that it reads."""

UNKNOWN = -1
"""The id of a token that was given as an embedding."""


@dataclass(eq=False)
class Text:
    """Some prompts and what is written after them; its passes share what readers decide about the prompts.

    Args:
        prompts: How many there are; a pass may hold several rows of each, as beams do.
        decisions: What readers have decided, by reader.
        logits: (B, V) of the bare model after each prompt, where it has read them already.
    """

    prompts: int
    decisions: dict[Any, Any] = field(default_factory=dict)
    logits: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Reading:
    """What a model reads in one forward pass.

    Args:
        ids: (B, T) each row from its beginning, with what is in the cache, and at least to the end of its prompt;
            `UNKNOWN` for embeddings.
        real: (B, P) 1 at real tokens, with P at most T; those behind are real.
        last: (B,) column of the last token of each row's prompt.
        start: First column that the pass reads; those before it are in the cache.
        stop: The column after the last one that it reads.
        text: What the pass belongs to.
        writing: Whether what follows the prompts is the model's own.
    """

    ids: Tensor
    real: Tensor
    last: Tensor
    start: int
    stop: int
    text: Text
    writing: bool

    @cached_property
    def mask(self) -> Tensor:
        """(B, T) 1 at real tokens."""
        return torch.cat([self.real, torch.ones_like(self.ids[:, self.real.shape[1] :])], 1)

    @property
    def complete(self) -> bool:
        """Whether the pass reads the prompts to their ends."""
        return int(self.last.max()) < self.stop


class Pass(Protocol):
    """What a reader does in a forward pass."""

    def __enter__(self) -> object: ...

    def __exit__(self, *error: object) -> None: ...

    def logits(self, logits: Tensor, cache: Cache | None) -> Tensor:
        """The logits (B, N, V) that the pass gives instead of these, after the last N columns that it has read."""


Reader = Callable[[Reading, set[int]], Pass]
"""From what is read, and the rows that others answer already, which it adds its own to. It may ask the model itself."""

_lengths: ContextVar[Sequence[int] | None] = ContextVar("prompt_lengths", default=None)


@contextmanager
def prompt_lengths(lengths: Sequence[int] | None) -> Iterator[None]:
    """Say how many tokens of each row are its prompt, in forward passes that read prompt and answer together.

    Args:
        lengths: (B,) real tokens, special ones included; None for whole rows.
    """
    token = _lengths.set(lengths)
    try:
        yield
    finally:
        _lengths.reset(token)


@contextmanager
def each_pass(model: PreTrainedModel, reader: Reader) -> Iterator[None]:
    """Ask a reader before each forward pass of a model; what it asks of the model meanwhile is bare.

    Readers that are put on later are asked first. Passes of several threads are read one after the other, each thread's
    generation with its own text. Copies of the model are bare.

    Args:
        model: The model.
        reader: What to ask.

    Raises:
        ValueError: In a pass of which it cannot be told where a prompt ends, or what it says.
    """
    with _changing:
        passes = _followed.setdefault(id(model), _Passes(model))
        passes.add(reader)
    try:
        yield
    finally:
        with _changing:
            passes.remove(reader)
            if not passes.readers:
                _followed.pop(id(model), None)


class _Passes:
    """The readers of one model, and its hooks while it has any."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model: Any = model
        self.readers: list[Reader] = []
        self.caches: WeakKeyDictionary[Any, Reading] = WeakKeyDictionary()
        self.generation = threading.local()
        self.lock = threading.RLock()
        self.asking = False
        self.current: _Current | None = None
        self.attached = ExitStack()

    def add(self, reader: Reader) -> None:
        with self.lock:
            if not self.readers:
                self._attach()
            self.readers.append(reader)

    def remove(self, reader: Reader) -> None:
        with self.lock:
            self.readers.remove(reader)
            if not self.readers:
                self.attached.close()

    def _attach(self) -> None:
        before = self.model.register_forward_pre_hook(eager(self._enter), with_kwargs=True)
        after = self.model.register_forward_hook(eager(self._leave), always_call=True)
        self.attached.callback(before.remove)
        self.attached.callback(after.remove)
        for name, function in (
            ("generate", self._generate),
            ("prepare_inputs_for_generation", self._prepare),
        ):
            self.attached.enter_context(_instead(self.model, name, function))

    def _generate(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Generate, knowing the prompts."""
        outer = getattr(self.generation, "now", None)
        self.generation.now = _Generation.begun(args, kwargs)
        try:
            return original(*args, **kwargs)
        finally:
            self.generation.now = outer

    def _prepare(self, original: Callable[..., Any], input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Prepare a step of a generation, and keep what it will read."""
        inputs = original(input_ids, *args, **kwargs)
        generation = getattr(self.generation, "now", None)
        if generation is not None:
            generation.prepare(input_ids, inputs, kwargs)
        return inputs

    def _enter(self, model: object, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        """Begin a pass."""
        if model is not self.model:
            return
        self.lock.acquire()
        if self.asking or not self.readers:
            self.lock.release()
            return
        if self.current is not None:  # this thread's, which was interrupted
            self._release(RuntimeError("the pass was interrupted."))
        armed = ExitStack()
        try:
            reading = self._reading(args, kwargs)
            passes, again = [], kwargs if self._may_read_again(reading, args, kwargs) else None
            if again is None:
                passes = self._ask(reading, set())
            for one in passes:
                armed.enter_context(one)
        except BaseException as error:
            armed.__exit__(type(error), error, None)
            self.lock.release()
            raise
        self.current = _Current(threading.get_ident(), reading, passes, armed, again)

    def _ask(self, reading: Reading, taken: set[int]) -> list[Pass]:
        """Ask the readers, who may ask the bare model."""
        self.asking = True
        try:
            return [reader(reading, taken) for reader in reversed(self.readers)]
        finally:
            self.asking = False

    def _may_read_again(self, reading: Reading, args: tuple[Tensor, ...], kwargs: Mapping[str, Any]) -> bool:
        """Whether a pass can be read bare first, and its last tokens once more with what readers make of it.

        So it is where `generate` begins: prompts are read to their ends into a cache that can be taken back a token.
        """
        cache = kwargs.get("past_key_values")
        return (
            reading.writing
            and not args
            and not reading.text.decisions
            and reading.start == 0
            and reading.stop > 1
            and bool((reading.last == reading.stop - 1).all())
            and bool((reading.ids != UNKNOWN).all())
            and type(cache) is DynamicCache
            and all(type(layer) is DynamicLayer for layer in cache.layers)
            and not any(kwargs.get(name) for name in ("output_hidden_states", "output_attentions", "labels"))
        )

    def _read_again(self, current: _Current, inputs: Mapping[str, Any], output: Any) -> None:  # noqa: ANN401
        """Read the last tokens once more, as readers want it, and put what comes of it into the rows that they take.

        All other rows keep what the bare model has made of them, to the bit.
        """
        reading, taken = replace(current.reading, start=current.reading.stop - 1), set[int]()
        reading.text.logits = output.logits[:, -1]
        current.passes = self._ask(reading, taken)
        reading.text.logits = None
        with ExitStack() as armed:
            for one in current.passes:
                armed.enter_context(one)
            if not taken:
                return
            cache = forked(output.past_key_values)
            cache.crop(-1)
            last = {name: inputs[name][..., -1:] for name in OF_TOKENS if inputs.get(name) is not None}
            self.asking = True
            try:
                again = self.model(**{**inputs, **last, "past_key_values": cache})
            finally:
                self.asking = False
        rows = torch.tensor(sorted(taken), device=output.logits.device)
        output.logits[rows, -1] = again.logits[rows, -1]
        for layer, moved in zip(output.past_key_values.layers, cache.layers, strict=True):
            assert isinstance(moved, DynamicLayer)
            for kept, new in ((layer.keys, moved.keys), (layer.values, moved.values)):
                if kept is not None and new is not None:
                    index = rows.to(kept.device)
                    kept[index, :, -1] = new[index, :, -1]

    def _leave(self, model: object, _: object, output: Any) -> Any:  # noqa: ANN401
        """End a pass; an output of None is that of one that has failed, perhaps before it had begun."""
        current = self.current
        if model is not self.model or self.asking or current is None or current.thread != threading.get_ident():
            return None
        if output is None:
            self._release(RuntimeError("the pass has failed."))
            return None
        try:
            current.armed.__exit__(None, None, None)
            if current.again is not None:
                self._read_again(current, current.again, output)
            cache = getattr(output, "past_key_values", None)
            if cache is not None:
                self.caches[cache] = current.reading
            if current.reading.writing and getattr(output, "logits", None) is not None:
                for one in current.passes:
                    output.logits = one.logits(output.logits, cache)
            return output
        finally:
            self._release()

    def _release(self, error: RuntimeError | None = None) -> None:
        """Let go of the pass of this thread; with an error it is broken off."""
        current, self.current = self.current, None
        try:
            if error is not None and current is not None:
                current.armed.__exit__(RuntimeError, error, None)
        finally:
            self.lock.release()

    def _reading(self, args: tuple[Tensor, ...], kwargs: Mapping[str, Any]) -> Reading:
        """What a pass reads."""
        generation: _Generation | None = getattr(self.generation, "now", None)
        if generation is not None and generation.reading is not None:
            reading, generation.reading = generation.reading, None
            return reading
        inputs = {**dict(zip(("input_ids", "attention_mask"), args, strict=False)), **kwargs}
        _check_pass(inputs)
        ids, cache = _ids(inputs), inputs.get("past_key_values")
        past = 0 if cache is None else int(cache.get_seq_length())
        if past == 0:
            mask = inputs.get("attention_mask")
            mask = torch.ones_like(ids) if mask is None else mask.to(ids)
            return Reading(ids, mask, _last(mask, inputs), 0, ids.shape[1], Text(len(ids)), writing=False)
        before = self.caches.get(cache)
        if before is None or before.ids.shape != (len(ids), past):
            raise MegaValueError(
                f"`past_key_values` must have been read with the edits in force, row by row, but {past} tokens of it "
                "were not; read the text anew, or use `generate` with the whole text."
            )
        added = inputs.get("attention_mask")
        added = torch.ones_like(ids) if added is None else added[:, -ids.shape[1] :].to(ids)
        mask, whole = torch.cat([before.mask, added], 1), torch.cat([before.ids, ids], 1)
        if ids.shape[1] == 1 and _lengths.get() is None:  # what a model writes comes token by token
            return Reading(whole, mask, before.last, past, whole.shape[1], before.text, writing=True)
        return Reading(whole, mask, _last(mask, inputs), past, whole.shape[1], Text(len(ids)), writing=False)


@dataclass(eq=False)
class _Current:
    """The pass that a model is in.

    Args:
        thread: Whose it is.
        reading: What it reads.
        passes: What is done in it.
        armed: Takes that back.
        again: Its arguments, where its last tokens are read once more after it.
    """

    thread: int
    reading: Reading
    passes: list[Pass]
    armed: ExitStack
    again: Mapping[str, Any] | None = None


_followed: dict[int, _Passes] = {}
"""By id the models that have readers; they are forgotten with their last one."""

_changing = threading.Lock()


@dataclass(eq=False)
class _Generation:
    """A call of `generate`.

    Args:
        prompts: (B, T) its prompts, as soon as they are known.
        mask: (B, T) 1 at their real tokens.
        given: Whether the prompts are ids of the call.
        text: What its passes belong to.
        reading: What its next pass reads.
        rows: By the number of rows of each prompt the mask of those rows, and the column where each prompt ends.
    """

    prompts: Tensor | None
    mask: Tensor | None
    given: bool
    text: Text | None = None
    reading: Reading | None = None
    rows: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @classmethod
    def begun(cls, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> _Generation:
        prompts = args[0] if args else kwargs.get("inputs", kwargs.get("input_ids"))
        prompts = prompts if isinstance(prompts, Tensor) else None
        mask = kwargs.get("attention_mask")
        if prompts is not None and mask is not None and mask.shape[-1] != prompts.shape[-1]:
            raise MegaValueError(
                f"`input_ids` must hold the whole text while edits are in force, what is in the cache too, but got "
                f"{prompts.shape[-1]} tokens for a mask of {mask.shape[-1]}; pass the text from its beginning."
            )
        return cls(prompts, mask, prompts is not None)

    def prepare(self, ids: Tensor, inputs: Mapping[str, Any], kwargs: Mapping[str, Any]) -> None:
        """Keep what the pass to come reads.

        Args:
            ids: (B, T) as far as the generation is, or (B, N) a piece of the prompts.
            inputs: Of the pass.
            kwargs: What they were prepared from.
        """
        embeddings, mask = kwargs.get("inputs_embeds"), kwargs.get("attention_mask")
        if embeddings is not None and not self.given:  # ids are those written so far
            ids = torch.cat([ids.new_full(embeddings.shape[:2], UNKNOWN), ids], 1)
        width = next(inputs[name].shape[1] for name in ("inputs_embeds", "input_ids") if inputs.get(name) is not None)
        if self.prompts is None:
            self.prompts = ids
        start = ids.shape[1] - width
        if ids.shape[1] < self.prompts.shape[1]:  # a piece of the prompts
            start = int(kwargs["past_key_values"].get_seq_length())
            ids = self.prompts.to(ids.device).repeat_interleave(len(ids) // len(self.prompts), 0)
        copies = len(ids) // len(self.prompts)
        if self.mask is None:  # `generate` has made one, which a piece of the prompts has a piece of
            self.mask = torch.ones_like(self.prompts)
            if mask is not None:
                self.mask[:, : mask.shape[1]] = mask[::copies, : self.prompts.shape[1]].to(self.mask)
        if copies not in self.rows:
            real = self.mask.to(ids).repeat_interleave(copies, 0)
            self.rows[copies] = real, _column(real, real.sum(-1))
        self.text = self.text or Text(len(self.prompts))
        self.reading = Reading(ids, *self.rows[copies], start, start + width, self.text, writing=True)


def _check_pass(inputs: Mapping[str, Any]) -> None:
    """Refuse a pass outside `generate` of which it cannot be told what it reads."""
    for name in ("cu_seq_lens_q", "block_table", "read_index"):
        if inputs.get(name) is not None:
            raise MegaValueError(
                f"each row must hold one text while edits are in force, but got `{name}`; do not pack texts."
            )
    mask = inputs.get("attention_mask")
    if mask is not None and (not isinstance(mask, Tensor) or mask.dim() != 2):
        kind = f"{mask.dim()} dimensions" if isinstance(mask, Tensor) else type(mask).__name__
        raise MegaValueError(f"`attention_mask` must be of shape (B, T) while edits are in force, but got {kind}.")


def _ids(inputs: Mapping[str, Any]) -> Tensor:
    ids: Tensor | None = inputs.get("input_ids")
    if ids is not None:
        return ids
    embeddings: Tensor = inputs["inputs_embeds"]
    return torch.full(embeddings.shape[:2], UNKNOWN, device=embeddings.device)


def _last(mask: Tensor, inputs: Mapping[str, Any]) -> Tensor:
    """Column (B,) of the last token of each row's prompt."""
    real, lengths, labels = mask.sum(-1), _lengths.get(), inputs.get("labels")
    if lengths is not None:
        given = torch.tensor(list(lengths), device=mask.device)
        if given.shape != real.shape or bool(((given < 1) | (given > real)).any()):
            raise MegaValueError(
                f"prompt lengths must lie in [1, {real.tolist()}] for these rows, but got {given.tolist()}."
            )
        return _column(mask, given)
    if labels is not None and labels.shape == mask.shape:
        judged = labels != -100
        first = torch.where(judged.any(-1), judged.long().argmax(-1), mask.shape[1])
        before = (mask * (torch.arange(mask.shape[1], device=mask.device) < first[:, None])).sum(-1)
        if bool((before == 0).any()):
            raise MegaValueError(
                "`labels` must be -100 over the prompt, whose end an edit acts at, but a row is judged from its "
                "beginning; set them to -100 there, or say the lengths with `prompt_lengths`."
            )
        return _column(mask, before)
    return _column(mask, real)


def _column(mask: Tensor, count: Tensor) -> Tensor:
    """Column (B,) of the real token of each row that has a number."""
    return (mask.cumsum(-1) >= count[:, None]).long().argmax(-1)


class _Method:
    """A method of one model in place of its own; copies of the model have their own.

    Args:
        model: The model.
        name: Of the method.
        function: Gets the model's own method first.
    """

    def __init__(self, model: object, name: str, function: Callable[..., Any]) -> None:
        self.model, self.name, self.function = model, name, function
        self.original = getattr(model, name)
        self.__signature__ = inspect.signature(self.original)
        self.active = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        return self.function(self.original, *args, **kwargs) if self.active else self.original(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:  # noqa: ANN401
        copy = memo[id(self.model)]
        return MethodType(getattr(type(copy), self.name), copy)


@contextmanager
def _instead(model: object, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Put a function in a method's place."""
    before = vars(model).get(name)
    method = _Method(model, name, function)
    setattr(model, name, method)
    try:
        yield
    finally:
        method.active = False  # a shallow copy of the model may have it still
        if before is None:
            delattr(model, name)
        else:
            setattr(model, name, before)
