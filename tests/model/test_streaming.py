"""Attention sinks: streams of any length in constant memory."""

import pytest
import torch
from transformers import DynamicCache

from hf_llm.model.positions import apply_rotary
from tests.tiny_models import tiny_model

PAD = 256
SINKS = {"layer_types": ["sink_attention"], "sliding_window": 8, "num_sink_tokens": 3, "num_hidden_layers": 2}


def some_tokens(length: int) -> torch.Tensor:
    return torch.randint(0, 256, (1, length), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("positions", ["rope", "none", "learned"])
@pytest.mark.parametrize("steps", [1, 5])
@torch.no_grad()
def test_a_stream_in_pieces_sees_what_the_whole_text_does(positions, steps):
    model, tokens = tiny_model(**SINKS, positions=positions), some_tokens(100)
    cache, pieces = DynamicCache(config=model.config), []
    for start in range(0, 100, steps):
        pieces.append(model(tokens[:, start : start + steps], past_key_values=cache, use_cache=True).logits)
        assert all(layer.keys.shape[2] <= 3 + 8 - 1 for layer in cache.layers)
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(tokens).logits, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_rows_of_very_different_lengths_keep_their_own_first_tokens():
    model, tokens = tiny_model(**SINKS), some_tokens(90)
    batch = torch.cat([tokens[:, :60], torch.cat([torch.full((1, 59), PAD), tokens[:, :1]], dim=1)])
    mask, cache = (batch != PAD).long(), DynamicCache(config=model.config)
    model(batch, attention_mask=mask, past_key_values=cache, use_cache=True)
    for i in range(1, 30):
        new = torch.cat([tokens[:, 59 + i], tokens[:, i]])[:, None]
        mask = torch.cat([mask, torch.ones(2, 1, dtype=mask.dtype)], dim=1)
        logits = model(new, attention_mask=mask, past_key_values=cache, use_cache=True).logits[:, 0]
        for row, seen in enumerate((60 + i, 1 + i)):
            torch.testing.assert_close(logits[row], model(tokens[:, :seen]).logits[0, -1], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_stream_of_many_contexts_takes_constant_memory_and_keeps_its_first_tokens_near():
    model = tiny_model(**SINKS, max_position_embeddings=32)
    cache = DynamicCache(config=model.config)
    for token in some_tokens(160)[0]:
        logits = model(token[None, None], past_key_values=cache, use_cache=True).logits
    assert all(layer.keys.shape[2] == 3 + 8 - 1 for layer in cache.layers)
    assert cache.get_seq_length() == 160 and logits.isfinite().all()
    # What the last token sees is what it would at the end of a context: first tokens at distance 31, then the window.
    state = {name: [x.clone() for x in (layer.keys, layer.values)] for name, layer in enumerate(cache.layers)}
    rewound = DynamicCache(config=model.config)
    turn = model.model.rotary_emb.angles(torch.tensor(-(160 - 32)))
    for layer, (keys, values) in zip(rewound.layers, state.values(), strict=True):
        layer.lazy_initialization(keys, values)
        layer.keys = torch.cat([keys[:, :, :3], apply_rotary(keys[:, :, 3:], *turn)], dim=2)
        layer.values, layer.seen, layer.dropped = values, 32, 32 - 3 - 7
    last = some_tokens(1)
    near = model(last, past_key_values=rewound, use_cache=True, position_ids=torch.tensor([[32]])).logits
    far = model(last, past_key_values=cache, use_cache=True).logits
    torch.testing.assert_close(far, near, rtol=1e-3, atol=1e-3)  # angles of positions near 160, in float32


@torch.no_grad()
def test_generating_past_the_context_goes_on_and_beam_search_reorders_the_cache():
    model, prompt = tiny_model(**SINKS, max_position_embeddings=32), some_tokens(6)
    settings = {
        "do_sample": False,
        "eos_token_id": None,
        "pad_token_id": PAD,
        "attention_mask": torch.ones_like(prompt),
    }
    assert model.generate(prompt, max_new_tokens=100, **settings).shape == (1, 106)
    beams = [model.generate(prompt, max_new_tokens=20, num_beams=3, use_cache=c, **settings) for c in (True, False)]
    assert torch.equal(*beams)
