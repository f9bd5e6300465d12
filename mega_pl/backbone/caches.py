"""Caches that several continuations start from."""

import copy

from transformers import Cache


def forked(cache: Cache) -> Cache:
    """A cache that can be appended to while the first one stays as it is; what both hold is not copied.

    It is so for caches that grow by making new tensors, as all but static ones do.

    Args:
        cache: of the model's past tokens.
    """
    fork = copy.copy(cache)
    fork.layers = [copy.copy(layer) for layer in cache.layers]
    return fork
