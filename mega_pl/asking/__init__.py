"""Prompts through a backbone: one batching loop, last states, the next token, teacher forcing, and generation."""

from mega_pl.asking.answers import answers, continued, greedy_ids
from mega_pl.asking.batches import batches, check_room, encoded_batches, in_batches, position_limit, token_counts
from mega_pl.asking.beginnings import Beginnings, read_beginnings, read_states
from mega_pl.asking.chat import chat_prompt
from mega_pl.asking.edited import BARE, Edited
from mega_pl.asking.generation import NEW_TOKENS, Continuation, continuations
from mega_pl.asking.next_token import NextToken, argmax_tokens, next_log_probs, next_logits, next_tokens
from mega_pl.asking.sampling import Sampling, sample
from mega_pl.asking.states import final_states, last_states
from mega_pl.asking.teacher_forcing import TeacherForced, answer_ids, teacher_forced

__all__ = [
    "BARE",
    "NEW_TOKENS",
    "Beginnings",
    "Continuation",
    "Edited",
    "NextToken",
    "Sampling",
    "TeacherForced",
    "answer_ids",
    "answers",
    "argmax_tokens",
    "batches",
    "chat_prompt",
    "check_room",
    "continuations",
    "continued",
    "encoded_batches",
    "final_states",
    "greedy_ids",
    "in_batches",
    "last_states",
    "next_log_probs",
    "next_logits",
    "next_tokens",
    "position_limit",
    "read_beginnings",
    "read_states",
    "sample",
    "teacher_forced",
    "token_counts",
]
