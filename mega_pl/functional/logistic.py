"""Logistic regression whose weights are not negative, for evidence that may only speak for what it is evidence of."""

import torch
from torch import Tensor
from torch.nn import functional as F


def fit_logistic(
    evidence: Tensor,
    right: Tensor,
    *,
    offset: Tensor | None = None,
    scale: Tensor | None = None,
    penalty: float = 1e-3,
) -> tuple[Tensor, float]:
    r"""Weights and bias of a logistic model, by L-BFGS in float64.

        min over w >= 0 and b of  mean BCE(offset + x w + b, right) + penalty * |scale * w|^2.

    Args:
        evidence: ``x`` (N, F).
        right: (N,) bool.
        offset: (N,) logits that count as they are; none for 0.
        scale: (F,) in which the weights are penalised; the standard deviation of each column by default.
        penalty: Of the weights in that scale.

    Returns:
        The weights (F,), float32, and the bias.
    """
    with torch.inference_mode(False), torch.enable_grad():
        scale = (evidence.double().std(0) if scale is None else scale.double()).clamp(min=1e-6)
        x, y = evidence.double() / scale, right.double()
        known = torch.zeros_like(y) if offset is None else offset.double()
        free = torch.zeros(x.shape[1], dtype=torch.float64, requires_grad=True)
        bias = torch.zeros((), dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([free, bias], max_iter=300, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            weights = F.softplus(free)
            logits = known + x @ weights + bias
            value = F.binary_cross_entropy_with_logits(logits, y) + penalty * weights.square().sum()
            value.backward()  # type: ignore[no-untyped-call]
            return value

        optimizer.step(loss)  # type: ignore[no-untyped-call]
        return (F.softplus(free.detach()) / scale).float(), float(bias.detach())
