"""What inside a model makes it say a token: importances of layers, heads, positions and neurons (arXiv:2312.12141)."""

from mega_pl.attribution.contrast import Changes, Contrast, changes_by, contrast_of
from mega_pl.attribution.gated import (
    SIGN_CLASSES,
    ClassChange,
    ClassFrequencies,
    Example,
    Gating,
    class_frequencies,
    compare_classes,
    gating,
    sign_classes,
)
from mega_pl.attribution.heads import HeadImportance, PositionImportance, head_importance, position_importance
from mega_pl.attribution.layers import LayerImportance, layer_importance
from mega_pl.attribution.neurons import NeuronImportance, attention_neuron_importance, neuron_importance
from mega_pl.attribution.queries import QueryLayers, QueryNeurons, query_layers, query_neurons
from mega_pl.attribution.ranking import layer_scores, pick_layers
from mega_pl.attribution.selection import Selection, SelectionConfig, select
from mega_pl.attribution.top import TopAttentionNeurons, TopNeurons, top_attention_neurons, top_neurons

__all__ = [
    "SIGN_CLASSES",
    "Changes",
    "ClassChange",
    "ClassFrequencies",
    "Contrast",
    "Example",
    "Gating",
    "HeadImportance",
    "LayerImportance",
    "NeuronImportance",
    "PositionImportance",
    "QueryLayers",
    "QueryNeurons",
    "Selection",
    "SelectionConfig",
    "TopAttentionNeurons",
    "TopNeurons",
    "attention_neuron_importance",
    "changes_by",
    "class_frequencies",
    "compare_classes",
    "contrast_of",
    "gating",
    "head_importance",
    "layer_importance",
    "layer_scores",
    "neuron_importance",
    "pick_layers",
    "position_importance",
    "query_layers",
    "query_neurons",
    "select",
    "sign_classes",
    "top_attention_neurons",
    "top_neurons",
]
