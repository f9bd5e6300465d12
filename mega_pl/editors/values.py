"""Finding what to write: the shift of an activation at the subject's last token that makes a model say a new object."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mega_pl.backbone import Backbone, Encoded
from mega_pl.editors.contexts import Lengths, Wordings, subject_positions
from mega_pl.editors.store import Store, of_model
from mega_pl.edits import EditRequest
from mega_pl.errors import MegaValueError

Shifted = Callable[[Tensor, Tensor], AbstractContextManager[None]]
"""Makes a context that adds a vector (D,) at one position (B,) of each row of a batch, in a way that gradients pass."""


@dataclass(frozen=True, kw_only=True)
class ValueConfig:
    """How the shift is found that ROME and MEMIT write.

    Args:
        v_num_grad_steps: Evaluations of the loss; the last one is followed by no step.
        v_lr: Of Adam.
        v_weight_decay: Weight of ``|shift| / |start|^2``, with start the activation that is shifted.
        clamp_norm_factor: The most that the shift may be long, in lengths of start.
        kl_factor: Weight of the divergence of what follows the subject alone.
        early_stop_loss: Loss in nats below which the search ends.
        context_template_length_params: Sampled texts to put before the prompt besides none: for each
            group how many tokens a text has, and how many texts there are.
        seed: Seed of the texts.
    """

    v_num_grad_steps: int = 20
    v_lr: float = 0.5
    v_weight_decay: float = 0.5
    clamp_norm_factor: float = 4.0
    kl_factor: float = 0.0625
    early_stop_loss: float = 0.05
    context_template_length_params: Lengths = ((5, 10), (10, 10))
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("v_num_grad_steps", 1), ("v_weight_decay", 0), ("kl_factor", 0), ("early_stop_loss", 0)):
            if not getattr(self, name) >= least:
                raise MegaValueError(f"`{name}` must be at least {least}, but got {getattr(self, name)}.")
        for name in ("v_lr", "clamp_norm_factor"):
            if not getattr(self, name) > 0:
                raise MegaValueError(f"`{name}` must be above 0, but got {getattr(self, name)}.")
        groups = self.context_template_length_params
        if any(tokens < 2 or count < 1 for tokens, count in groups):
            raise MegaValueError(
                "`context_template_length_params` must name groups of 1 text or more of 2 tokens or more each, but got "
                f"{groups}."
            )


@dataclass(frozen=True)
class Objective:
    """The loss of a shift: a new object after the prompt in every context, and an unchanged subject.

    Args:
        encoded: C prompts with their answers, then the subject alone, padded on the left.
        positions: (C + 1,) long, the subject's last token in each row.
        answers: Number of tokens of each answer, (C,) long.
    """

    encoded: Encoded
    positions: Tensor
    answers: Tensor

    @classmethod
    def of(cls, backbone: Backbone, request: EditRequest, contexts: Sequence[str]) -> "Objective":
        """Encode an edit's prompt after contexts with its new object.

        The subject of ``{subject} is a`` is read at its last token, where it knows nothing of what follows.
        """
        wordings = Wordings.of(request, contexts)
        answers = [len(backbone.answer_ids(text, request.target_new)) for text in wordings.texts]
        texts = [*(f"{text} {request.target_new}" for text in wordings.texts), request.subject]
        ends = [*wordings.subject_ends, len(request.subject)]
        return cls(backbone.encode(texts), subject_positions(backbone, texts, ends), torch.tensor(answers))

    def log_probabilities(self, backbone: Backbone) -> tuple[Tensor, Tensor]:
        """Log-probabilities in nats: of the answers (C,), means over their tokens, and after the subject (V,)."""
        kept = int(self.answers.max()) + 1
        logits = backbone.model(**self.encoded.inputs, use_cache=False, logits_to_keep=kept).logits
        forced = answer_log_probabilities(logits[:-1], self.encoded.input_ids[:-1], self.answers)
        return forced, logits[-1, -1].float().log_softmax(-1)


def answer_log_probabilities(logits: Tensor, ids: Tensor, answers: Tensor) -> Tensor:
    """Mean log-probability, in nats, of the tokens of each answer, given those before it.

    Args:
        logits: (B, N + 1, V) at the last tokens, N the length of the longest answer.
        ids: (B, T) long, texts that end in their answers.
        answers: (B,) long, the answers' numbers of tokens.

    Returns:
        (B,) float32.
    """
    chances = logits[:, :-1].float().log_softmax(-1)
    longest = chances.shape[1]
    of_tokens = chances.gather(-1, ids[:, -longest:, None].to(chances.device))[..., 0]
    lengths = answers.to(chances.device)
    counts = torch.arange(longest, device=chances.device) >= longest - lengths[:, None]
    return (of_tokens * counts).sum(-1) / lengths


def find_shift(
    backbone: Backbone,
    request: EditRequest,
    contexts: Sequence[str],
    config: ValueConfig,
    start: Tensor,
    shifted: Shifted,
) -> Tensor:
    """Minimise ROME's loss (Eq. 4 of arXiv:2202.05262) with its decay of the shift d, in nats.

        L(d) = mean_c NLL_c(new object) + kl_factor * KL(after | before) + v_weight_decay * |d| / |start|^2,

    NLL_c the mean over the object's tokens in context c, and the distributions of KL those of the token that follows
    the subject alone. After each of Adam's steps d is clipped to ``clamp_norm_factor * |start|``.

    Args:
        backbone: The model, in the state that the shift is for.
        request: What it should say.
        contexts: Texts to put before the prompt.
        config: Settings.
        start: (D,) the activation in the bare prompt.
        shifted: Where the shift is added.

    Returns:
        The shift (D,), float32.
    """
    length = float(start.float().norm())
    with torch.inference_mode(False), torch.enable_grad():
        objective = Objective.of(backbone, request, contexts)
        before: Tensor | None = None
        shift = torch.zeros_like(start, dtype=torch.float32, requires_grad=True)
        adam = torch.optim.Adam([shift], lr=config.v_lr)
        for step in range(config.v_num_grad_steps):
            with shifted(shift, objective.positions):
                answers, after = objective.log_probabilities(backbone)
            before = after.detach() if before is None else before
            drift = F.kl_div(before, after, log_target=True, reduction="sum")
            loss = config.kl_factor * drift - answers.mean() + config.v_weight_decay * shift.norm() / length**2
            if step == config.v_num_grad_steps - 1 or loss < config.early_stop_loss:
                break
            adam.zero_grad()
            torch.autograd.backward(loss, inputs=[shift])
            adam.step()
            with torch.no_grad():
                shift *= (config.clamp_norm_factor * length / shift.norm()).clamp(max=1.0)
    return shift.detach()


def stored_shifts(
    store: Store,
    place: str,
    weights: Sequence[Tensor],
    backbone: Backbone,
    requests: Sequence[EditRequest],
    contexts: Sequence[str],
    config: ValueConfig,
    starts: Tensor,
    shifted: Shifted,
) -> Tensor:
    """The shifts (E, D), float32, of E edits by `find_shift`, each by itself, as far as a store does not hold them.

    Args:
        store: Where shifts are kept.
        place: Where in the model the shift is added, in words.
        weights: Those that may have been edited by now.
        backbone: See `find_shift`.
        requests: The E edits.
        contexts: See `find_shift`.
        config: See `find_shift`.
        starts: (E, D).
        shifted: See `find_shift`.
    """
    of = ["shift", place, *of_model(backbone, weights), list(contexts), asdict(config)]
    found = store.each(
        [[*of, asdict(request)] for request in requests],
        lambda i: ({"shift": find_shift(backbone, requests[i], contexts, config, starts[i], shifted)}, None),
        "shifts",
    )
    return torch.stack([tensors["shift"].to(starts.device) for tensors, _ in found])
