"""Memory that is allocated once for many tokens: a generation's tokens, keys and values. This file travels with the
weights.

Shapes at line ends:
    B batch   T tokens   K key/value heads   A head_dim   S tokens seen, cached ones too
"""

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

MIN_ROOM = 256  # tokens for which there is room at first; a limit that nobody reaches should take no memory


def room_for(length: int, max_length: int) -> int:
    """Return for how many tokens to allocate memory where `length` are there: twice as many, up to the limit."""
    return max(length, min(2 * length + MIN_ROOM, max_length))


class TokenRoom:
    """The tokens so far, B T, in memory that has room for more."""

    def __init__(self, tokens: torch.Tensor, max_length: int):
        self.max_length = max_length
        self.tokens = tokens  # B T
        self._room = tokens  # B (T and more)

    def append(self, chosen: torch.Tensor) -> None:
        """Add a token to each row; `chosen` is B."""
        batch, length = self.tokens.shape
        if length == self._room.shape[1]:
            self._room = self.tokens.new_empty(batch, room_for(length + 1, self.max_length))
            self._room[:, :length] = self.tokens
        self._room[:, length] = chosen
        self.tokens = self._room[:, : length + 1]


class PreallocatedLayer(DynamicLayer):
    """transformers' dynamic cache of a layer, without its copy of all keys and values for every token.

    `keys` and `values` (B K S A) are the beginning of larger memory, which grows to twice its size when it is full, up
    to `max_length` tokens.
    """

    def __init__(self, max_length: int):
        super().__init__()
        self.max_length = max_length
        self._key_room: torch.Tensor | None = None  # B K (S and more) A
        self._value_room: torch.Tensor | None = None
        self._keys_in_room: torch.Tensor | None = None  # `keys`, unless another method has replaced them

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add keys and values, B K T A, and return all, B K S A."""
        added = key_states.shape[-2]
        start = self.get_seq_length()
        end = start + added
        if self._key_room is None or self.keys is not self._keys_in_room or end > self._key_room.shape[-2]:
            self._make_room(key_states, value_states, end)
        key_room = self._key_room
        value_room = self._value_room
        assert key_room is not None and value_room is not None

        key_room.narrow(2, start, added).copy_(key_states)
        value_room.narrow(2, start, added).copy_(value_states)
        self.keys = key_room.narrow(2, 0, end)
        self.values = value_room.narrow(2, 0, end)
        self._keys_in_room = self.keys
        return self.keys, self.values

    def _make_room(self, key_states: torch.Tensor, value_states: torch.Tensor, length: int) -> None:
        """Allocate memory for `length` tokens and more, and move what there is into it."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        room = room_for(length, self.max_length)
        seen = self.get_seq_length()

        rooms = []
        for states, cached in ((key_states, self.keys), (value_states, self.values)):
            assert cached is not None
            batch, heads, _, size = states.shape
            memory = states.new_empty(batch, heads, room, size)
            if seen:
                memory[:, :, :seen] = cached
            rooms.append(memory)
        self._key_room, self._value_room = rooms


def preallocate(cache: Cache, max_length: int) -> None:
    """Let the layers of an empty cache that would grow token by token have memory for more, up to `max_length` tokens.

    Those with a window of their own keep it.
    """
    cache.layers = [PreallocatedLayer(max_length) if type(layer) is DynamicLayer else layer for layer in cache.layers]
