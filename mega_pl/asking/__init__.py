"""Prompts through a bare backbone: what it says next, and how it goes on."""

from mega_pl.asking.answers import answers, continued, greedy_ids, likeliest, next_log_probs

__all__ = ["answers", "continued", "greedy_ids", "likeliest", "next_log_probs"]
