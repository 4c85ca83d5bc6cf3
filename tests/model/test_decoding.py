"""The loop that generates: the same tokens as the loop of transformers, whatever the model and the settings."""

import random

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessorList,
    MaxTimeCriteria,
    MistralConfig,
    Qwen3Config,
    StoppingCriteriaList,
    SuppressTokensLogitsProcessor,
)
from transformers.cache_utils import DynamicLayer
from transformers.generation.utils import GenerationMixin
from transformers.utils import logging as transformers_logging

from hf_llm.model import decoding_cache, decoding_step
from hf_llm.model.decoding import FastSuppression, decode
from hf_llm.model.decoding_cache import PreallocatedLayer
from tests.tiny_models import tiny_model
from tests.variants import CHANGES

PAD = 256
SIZES = {
    **{"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"max_position_embeddings": 128, "pad_token_id": PAD, "bos_token_id": None, "eos_token_id": None},
}
STOCK = {
    "llama": LlamaConfig(**SIZES, intermediate_size=48, num_key_value_heads=2),
    "qwen3": Qwen3Config(**SIZES, intermediate_size=48, num_key_value_heads=2, head_dim=8),
    "mistral": MistralConfig(**SIZES, intermediate_size=48, num_key_value_heads=2, sliding_window=6),
    "gemma2": Gemma2Config(**SIZES, intermediate_size=48, num_key_value_heads=2, head_dim=8, sliding_window=6),
    "gpt2": GPT2Config(
        **{key: value for key, value in SIZES.items() if key in ("vocab_size", "pad_token_id", "eos_token_id")},
        **{"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    ),
}


@pytest.fixture(autouse=True)
def little_room(monkeypatch):
    """Memory and steps are prepared for a few tokens at a time, so that a short text needs more of both."""
    monkeypatch.setattr(decoding_cache, "MIN_ROOM", 2)
    monkeypatch.setattr(decoding_step, "STEPS_PREPARED", 3)


def stock_model(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    config = STOCK[name]
    config.initializer_range = 0.2
    return AutoModelForCausalLM.from_config(config).eval()


def padded_prompts(lengths: list[int]) -> dict[str, torch.Tensor]:
    """Random prompts of these lengths, padded on the left."""
    draw = torch.Generator().manual_seed(sum(lengths))
    longest = max(lengths)
    input_ids = torch.full((len(lengths), longest), PAD)
    attention_mask = torch.zeros(len(lengths), longest, dtype=torch.long)
    for row, length in enumerate(lengths):
        input_ids[row, longest - length :] = torch.randint(0, 256, (length,), generator=draw)
        attention_mask[row, longest - length :] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}


def generate_both(model: torch.nn.Module, seed: int = 0, **settings) -> tuple[torch.Tensor, torch.Tensor]:
    """What our loop and what the loop of transformers generate."""
    torch.manual_seed(seed)
    ours = model.generate(**settings, custom_generate=decode)
    torch.manual_seed(seed)
    theirs = model.generate(**settings, custom_generate=GenerationMixin._sample)
    return ours, theirs


def assert_equal_loops(model: torch.nn.Module, seed: int = 0, **settings) -> torch.Tensor:
    ours, theirs = generate_both(model, seed, **settings)
    assert torch.equal(ours, theirs)
    assert not ours.is_inference()
    return ours


variants = pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES.keys())


@variants
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("lengths", [[9], [5, 5], [3, 12, 1, 7]], ids=["one", "even", "padded"])
def test_every_variant_generates_the_same_greedy_tokens(changes, attention, lengths):
    model = tiny_model(attention, **changes)
    settings = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None}
    expected = assert_equal_loops(model, **padded_prompts(lengths), **settings)
    assert torch.equal(model.generate(**padded_prompts(lengths), **settings), expected)  # the class enters the loop
    assert len(set(expected.flatten().tolist())) > 5


@variants
def test_every_variant_fills_its_context_to_the_end(changes):
    model = tiny_model(**changes)
    tokens = assert_equal_loops(model, **padded_prompts([120, 100]), max_length=128, do_sample=False, eos_token_id=None)
    assert tokens.shape == (2, 128)


@variants
def test_hooks_within_the_layers_see_every_token_and_change_none(changes):
    model = tiny_model(**changes)
    settings = {**padded_prompts([3, 12]), "max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    expected = model.generate(**settings)
    for name in ("self_attn.q_proj", "mlp", "self_attn", ""):
        calls = []
        modules = [layer.get_submodule(name) for layer in model.model.layers]
        hooks = [module.register_forward_hook(lambda *arguments, calls=calls: calls.append(1)) for module in modules]
        assert torch.equal(model.generate(**settings), expected)
        assert len(calls) == 8 * model.config.num_hidden_layers
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("changes", [CHANGES[name] for name in ("default", "window", "experts", "untied")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stock", [False, True])
def test_adapters_generate_the_same_tokens(changes, dtype, stock):
    model = stock_model("llama") if stock else tiny_model(**changes)
    adapted = get_peft_model(model.to(dtype), LoraConfig(target_modules=["q_proj", "v_proj", "o_proj"], r=4))
    settings = {**padded_prompts([3, 12]), "max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    before = assert_equal_loops(adapted, **settings)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.5)
    after = assert_equal_loops(adapted, **settings)
    assert not torch.equal(before, after)
    with adapted.disable_adapter():
        assert torch.equal(assert_equal_loops(adapted, **settings), before)


def test_what_training_does_to_a_model_stays_while_it_generates():
    model = tiny_model(**CHANGES["dropout"]).train()
    settings = {**padded_prompts([3, 12]), "max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    trained = assert_equal_loops(model, **settings)
    assert not torch.equal(trained, model.eval().generate(**settings))


def test_a_model_trains_on_after_it_has_generated():
    for changes in CHANGES.values():
        model = tiny_model(**changes)
        prompts = padded_prompts([3, 12])
        with torch.autocast("cpu", torch.bfloat16):
            model.generate(**prompts, max_new_tokens=4, do_sample=False)
        model.generate(**prompts, max_new_tokens=4, do_sample=False)
        model.train()(**prompts, labels=prompts["input_ids"]).loss.backward()
        assert all(parameter.grad is not None for parameter in model.model.layers[0].self_attn.parameters())


class LlamaWithOwnInputs(LlamaForCausalLM):
    """A class of the kind that needs more than token ids, mask and positions."""

    def prepare_inputs_for_generation(self, input_ids, **kwargs):
        return super().prepare_inputs_for_generation(input_ids, **kwargs)


def test_a_model_that_the_loop_cannot_run_generates_all_the_same_and_says_so(caplog):
    settings = {**padded_prompts([3, 12]), "max_new_tokens": 8, "do_sample": False}
    expected = stock_model("llama").generate(**settings)
    model = LlamaWithOwnInputs(STOCK["llama"]).eval()
    model.load_state_dict(stock_model("llama").state_dict())
    transformers_logging.enable_propagation()
    tokens = model.generate(**settings, custom_generate=decode)
    transformers_logging.disable_propagation()
    assert torch.equal(tokens, expected)
    assert "LlamaWithOwnInputs generates in transformers' own, slower loop: its class prepares" in caplog.text


@pytest.mark.parametrize("name", STOCK)
@pytest.mark.parametrize("lengths", [[9], [3, 12, 1, 7]], ids=["one", "padded"])
def test_other_classes_generate_the_same_tokens(name, lengths):
    model = stock_model(name)
    for settings in ({"do_sample": False}, {"do_sample": True, "top_k": 20, "temperature": 2.0}):
        assert_equal_loops(model, **padded_prompts(lengths), max_new_tokens=20, **settings)


def test_rows_that_end_get_padding_and_the_last_to_end_ends_it():
    model = tiny_model()
    prompts = padded_prompts([3, 12, 1, 7])
    free = model.generate(**prompts, max_new_tokens=30, do_sample=False, eos_token_id=None)[:, 12:]
    for ends in ([free[0, 2].item()], [free[0, 2].item(), free[1, 9].item()], free[:, 4].tolist()):
        tokens = assert_equal_loops(model, **prompts, max_new_tokens=30, do_sample=False, eos_token_id=ends)
        assert tokens[0, -1] == PAD or tokens.shape[1] < 42
    assert tokens.shape[1] <= 12 + 5  # each row has one of these ends among its first five tokens


def random_settings(draw: random.Random) -> dict:
    """Settings of generate, most of them left out."""
    choices = {
        "do_sample": [True, True, False],
        "temperature": [0.3, 0.8, 1.0, 3.0],
        "top_k": [0, 1, 5, 50, 1000],
        "top_p": [0.1, 0.9, 1.0],
        "min_p": [0.0, 0.1, 0.6],
        "typical_p": [0.5, 1.0],
        "epsilon_cutoff": [0.001],
        "repetition_penalty": [0.7, 1.0, 1.5],
        "no_repeat_ngram_size": [2],
        "min_new_tokens": [4],
        "suppress_tokens": [[0], list(range(256, 320)), list(range(0, 320, 3))],
        "begin_suppress_tokens": [list(range(100))],
        "bad_words_ids": [[[5], [6, 7]]],
        "renormalize_logits": [True],
        "num_return_sequences": [2],
        "max_new_tokens": [1, 2, 9, 17],
        "eos_token_id": [None, [257], list(range(0, 320, 11)), list(range(0, 320, 3))],
    }
    settings = {"max_new_tokens": 9, "do_sample": True, "top_k": 0}
    settings |= {key: draw.choice(values) for key, values in choices.items() if draw.random() < 0.4}
    if not settings["do_sample"]:
        for key in ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "num_return_sequences"):
            settings.pop(key, None)
    return settings


@pytest.mark.parametrize("seed", range(60))
def test_any_settings_generate_the_same_tokens_and_draw_the_same_numbers(seed):
    draw = random.Random(seed)
    model = tiny_model(**CHANGES[draw.choice(list(CHANGES))]) if seed % 3 else stock_model(draw.choice(list(STOCK)))
    lengths = [draw.randint(1, 20) for _ in range(draw.randint(1, 4))]
    settings = random_settings(draw)
    assert_equal_loops(model, seed, **padded_prompts(lengths), **settings)
    after = torch.rand(1)
    torch.manual_seed(seed)
    model.generate(**padded_prompts(lengths), **settings, custom_generate=decode)
    assert torch.equal(torch.rand(1), after)


@pytest.mark.parametrize("suppressed", [[0], [319], list(range(300, 400)), list(range(320))])
def test_suppressed_scores_are_those_of_transformers(suppressed):
    scores = torch.randn(3, 320)
    theirs = SuppressTokensLogitsProcessor(suppressed)
    ours = FastSuppression(SuppressTokensLogitsProcessor(suppressed))
    for _ in range(2):
        assert torch.equal(ours(None, scores), theirs(None, scores))


class Recorder:
    """A logits processor that keeps a copy of the scores it sees."""

    def __init__(self):
        self.scores = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.scores.append(scores.clone())
        return scores


def test_a_processor_and_a_criterion_of_ones_own_see_what_they_see_in_transformers():
    model = tiny_model()
    seen = []
    for loop in (decode, GenerationMixin._sample):
        recorder = Recorder()
        lengths = []

        def stop_at_nine(tokens, scores, lengths=lengths):
            lengths.append(tokens.shape)
            return torch.full((len(tokens),), tokens.shape[1] == 16)

        tokens = model.generate(
            **padded_prompts([3, 7]),
            max_new_tokens=30,
            do_sample=False,
            eos_token_id=None,
            logits_processor=LogitsProcessorList([recorder]),
            stopping_criteria=StoppingCriteriaList([stop_at_nine, MaxTimeCriteria(600)]),
            custom_generate=loop,
        )
        assert tokens.shape == (2, 16)
        seen.append((lengths, torch.stack(recorder.scores)))
    assert seen[0][0] == seen[1][0]
    torch.testing.assert_close(seen[0][1], seen[1][1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"return_dict_in_generate": True, "output_scores": True},
        {"cache_implementation": "static", "disable_compile": True},
        {"use_cache": False},
        {"prefill_chunk_size": 4},
        {"past_key_values": DynamicCache},
        {"num_beams": 3},
        {"position_ids": torch.arange(5)[None]},
        {"inputs_embeds": torch.zeros(1, 5, 32)},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_what_the_loop_does_not_do_is_left_to_transformers(settings):
    model = tiny_model()
    settings = {key: value() if isinstance(value, type) else value for key, value in settings.items()}
    common = {"attention_mask": torch.ones(1, 5).long(), "max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    prompt = torch.arange(5)[None] + 40
    if "inputs_embeds" in settings:
        settings["inputs_embeds"] = model.get_input_embeddings()(prompt).detach()
    result = model.generate(prompt, **common, **settings)
    if "num_beams" in settings:
        assert result.shape == (1, 13)
        return
    tokens = result.sequences if "return_dict_in_generate" in settings else result
    assert torch.equal(tokens[:, -8:], model.generate(prompt, **common)[:, -8:])


def test_what_wraps_the_model_sees_every_token():
    model = tiny_model()
    prompts = padded_prompts([3, 7])
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    expected = model.generate(**prompts, **settings)
    shapes = []
    hook = model.register_forward_hook(lambda module, inputs, keywords, output: shapes.append(1), with_kwargs=True)
    assert torch.equal(model.generate(**prompts, **settings), expected)
    assert len(shapes) == 6
    hook.remove()

    plain_forward = model.forward

    def forward(*arguments, **keywords):
        shapes.append(1)
        with torch.autocast("cpu", torch.bfloat16):
            return plain_forward(*arguments, **keywords)

    model.forward = forward
    wrapped = assert_equal_loops(model, **prompts, **settings)
    assert len(shapes) == 6 + 2 * 6
    with torch.autocast("cpu", torch.bfloat16):
        del model.forward
        assert torch.equal(assert_equal_loops(model, **prompts, **settings), wrapped)


@variants
def test_an_autocast_around_it_changes_no_token_of_transformers_own(changes):
    model = tiny_model(**changes)
    with torch.autocast("cpu", torch.bfloat16):
        assert_equal_loops(model, **padded_prompts([3, 7]), max_new_tokens=8, do_sample=False, eos_token_id=None)


def random_states(draw: torch.Generator, batch: int, tokens: int) -> torch.Tensor:
    return torch.randn(batch, 2, tokens, 4, generator=draw)


@pytest.mark.parametrize("seed", range(10))
def test_a_preallocated_layer_holds_what_a_dynamic_one_does(seed):
    draw = torch.Generator().manual_seed(seed)
    ours = PreallocatedLayer(max_length=12)
    theirs = DynamicLayer()
    batch = 3
    for _ in range(30):
        action = int(torch.randint(0, 6, (1,), generator=draw))
        if action < 3 or theirs.get_seq_length() == 0:
            states = random_states(draw, batch, 1 + action)
            pairs = zip(ours.update(states, states + 1), theirs.update(states, states + 1), strict=True)
        else:
            for layer in (ours, theirs):
                if action == 3:
                    layer.crop(-1)
                elif action == 4:
                    layer.batch_select_indices(torch.tensor([0, 0, 2]))
                else:
                    layer.reorder_cache(torch.tensor([2, 1, 0]))
            pairs = zip((ours.keys, ours.values), (theirs.keys, theirs.values), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)
        assert ours.get_seq_length() == theirs.get_seq_length()
        assert ours.get_mask_sizes(1) == theirs.get_mask_sizes(1)
    ours.reset()
    assert ours.get_seq_length() == 0
    states = random_states(draw, 1, 2)
    assert torch.equal(ours.update(states, states)[0], states)
