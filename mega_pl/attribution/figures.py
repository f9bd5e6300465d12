"""Pictures of attribution: what edits change by layer, which heads do it, and where steering acts."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from mega_pl.attribution.contrast import Contrast
from mega_pl.attribution.layers import LayerImportance

COLORS = {"attention": "#2a6f97", "MLP": "#e07a5f"}
PANELS = ("new object (above 0: promoted)", "true object (below 0: suppressed)")


def draw_contrast(contrast: Contrast, picked: Sequence[int] = ()) -> Figure:
    """Success minus failure by layer and module, with 95 % intervals; picked layers are shaded.

    Args:
        contrast: What to show.
        picked: 0-based blocks that edits steer at.
    """
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for axes, title, *values in zip(
        figure.subplots(1, 2, sharey=True), PANELS, contrast.mean, contrast.low, contrast.high, strict=True
    ):
        for (name, color), mean, low, high in zip(COLORS.items(), *values, strict=True):
            layers = range(len(mean))
            axes.plot(layers, mean, color=color, marker="o", markersize=3, label=name)
            axes.fill_between(layers, low, high, color=color, alpha=0.2, linewidth=0)
        _finish(axes, title, len(contrast.mean[0, 0]), picked)
    figure.axes[0].set_ylabel("successes − failures (nats)")
    figure.axes[0].legend(frameon=False)
    won, lost = (sum(contrast.counts[name][i] for name in contrast.success) for i in (0, 1))
    figure.suptitle(f"Change of importance by {', '.join(contrast.success)}: {won} successes, {lost} failures")
    return figure


def draw_edit(
    before: LayerImportance, after: LayerImportance, row: int = 0, names: Sequence[str] = (), picked: Sequence[int] = ()
) -> Figure:
    """One prompt's importances before and after an edit, a panel an object; steered layers are shaded.

    Args:
        before: Of the bare model, W objects.
        after: Of the edited model, the same objects.
        row: Which of the prompts.
        names: The objects.
        picked: 0-based blocks that the edit steers at.
    """
    objects = before.attention.shape[1]
    figure = Figure(figsize=(4.5 * objects, 3.4), layout="constrained")
    for w, axes in enumerate(figure.subplots(1, objects, sharey=True, squeeze=False)[0]):
        for name, color in COLORS.items():
            module = "attention" if name == "attention" else "mlp"
            for seen, style, when in ((before, "--", "before"), (after, "-", "after")):
                values = getattr(seen, module)[row, w].float().cpu()
                axes.plot(values, style, color=color, marker="o", markersize=3, label=f"{name}, {when}")
        change = float(after.output[row, w] - before.output[row, w])
        title = f"{names[w] if names else f'object {w}'}: log-probability {change:+.2f} nats"
        _finish(axes, title, before.attention.shape[-1], picked)
    figure.axes[0].set_ylabel("importance (nats)")
    figure.axes[0].legend(frameon=False, fontsize=8)
    return figure


def draw_heads(scores: Tensor, title: str = "Importance of heads", limit: float | None = None) -> Figure:
    """A heat map of heads by layer, blue where a head raises the log-probability and red where it lowers it.

    Args:
        scores: (L, H) nats.
        title: Of the figure.
        limit: Nats of the strongest colour; by default the largest score.
    """
    scores = scores.float().cpu()
    layers, heads = scores.shape
    figure = Figure(figsize=(max(4.0, 1.6 + 0.22 * layers), max(2.2, 1.2 + 0.2 * heads)), layout="constrained")
    axes = figure.subplots()
    limit = limit or max(float(scores.abs().max()), 1e-9)
    image = axes.imshow(scores.T, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto", origin="lower")
    axes.set_xlabel("block")
    axes.set_ylabel("head")
    axes.set_title(title, fontsize=9)
    figure.colorbar(image, ax=axes, label="nats")
    return figure


def draw_steering(norms: dict[str, float]) -> Figure:
    """How far an edit moves each site, as a share of the length of what was there.

    Args:
        norms: By site the mean of |moved - before| / |before|.
    """
    figure = Figure(figsize=(max(3.6, 1.2 + 0.7 * len(norms)), 3.0), layout="constrained")
    axes = figure.subplots()
    axes.bar(list(norms), list(norms.values()), color=COLORS["attention"])
    axes.set_ylabel("move / length of the stream")
    axes.set_title("Where steering acts", fontsize=10)
    axes.tick_params(axis="x", rotation=30)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _finish(axes: Axes, title: str, layers: int, picked: Sequence[int]) -> None:
    for layer in picked:
        axes.axvspan(layer - 0.4, layer + 0.4, color="#f2cc8f", alpha=0.4, linewidth=0)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(range(0, layers, max(1, layers // 8)))
    axes.set_xlabel("block")
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
