"""Ranking and picking layers."""

import pytest
import torch

from mega_pl.attribution.contrast import Contrast
from mega_pl.attribution.ranking import layer_scores, pick_layers

SCORES = torch.tensor([9.0, 1.0, 2.0, 5.0, 3.0, 8.0, 7.0, 6.0])


def test_a_layer_scores_by_promoting_the_new_and_holding_the_true_object_back():
    mean = torch.zeros(2, 2, 3)
    mean[0, 0] = torch.tensor([1.0, 2.0, 0.0])  # attention, new object
    mean[1, 0] = torch.tensor([0.5, -1.0, 0.0])  # attention, true object
    mean[:, 1] = 100.0  # the MLP has no say
    contrast = Contrast({}, {}, {}, mean, mean, mean, "argmax")
    assert layer_scores(contrast).tolist() == [0.5, 3.0, 0.0]
    assert layer_scores(contrast, suppression=0.0).tolist() == [1.0, 2.0, 0.0]


@pytest.mark.parametrize(
    ("number", "window", "spacing", "picked"),
    [
        (3, (0.0, 1.0), 1, [0, 5, 6]),
        (3, (0.4, 1.0), 1, [5, 6, 7]),
        (3, (0.4, 1.0), 2, [3, 5, 7]),
        (2, (0.0, 0.5), 3, [0, 3]),
        (1, (1.0, 1.0), 1, [7]),
    ],
)
def test_the_best_layers_of_the_window_are_picked_in_order(number, window, spacing, picked):
    assert pick_layers(SCORES, number, window=window, spacing=spacing) == picked


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"number": 4, "window": (0.9, 1.0)}, "must hold 4 layers 1 apart, but holds 1 of 8; widen it"),
        ({"number": 5, "spacing": 3}, "must hold 5 layers 3 apart"),
        ({"number": 0}, "`number` and `spacing` must be at least 1, but got 0 and 1"),
        ({"number": 1, "window": (0.8, 0.2)}, "`window` must be two fractions in order"),
    ],
)
def test_what_cannot_be_picked_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        pick_layers(SCORES, **settings)
