import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.generation.utils import GenerationMixin

from hf_llm.core.errors import UserError
from hf_llm.inference.chat_session import ChatSession
from hf_llm.inference.generate import (
    complete_prompts,
    drop_oldest_turns,
    encode_conversation,
    generate_replies,
    generate_tokens,
    generation_stop_ids,
    load_for_generation,
    pad_left,
    set_stop_tokens,
    suppressed_ids,
)
from hf_llm.tokenization.text_boundaries import set_boundaries
from tests.tiny_models import save_tiny_model, tiny_config, tiny_model, tiny_tokenizer

SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
SIZES += ("num_key_value_heads", "max_position_embeddings", "pad_token_id", "eos_token_id")
PROMPTS = ["The", "A much longer beginning of a text", ""]


def test_a_batch_of_prompts_is_completed_as_each_alone():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    together = complete_prompts(model, tokenizer, PROMPTS, 12, do_sample=False)
    assert together == [complete_prompts(model, tokenizer, [prompt], 12, do_sample=False)[0] for prompt in PROMPTS]
    assert any(together)


def test_a_seed_repeats_the_text_and_leaves_the_process_random_numbers_alone():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    texts = {complete_prompts(model, tokenizer, ["x"], 12, seed=1, do_sample=True, top_k=0)[0] for _ in range(3)}
    assert len(texts) == 1
    assert torch.equal(torch.rand(1), expected)
    assert complete_prompts(model, tokenizer, ["x"], 12, seed=2, do_sample=True, top_k=0)[0] not in texts


def test_tokens_end_with_the_first_end_of_a_text():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    prompts = [[40, 41, 42], [50] * 9]
    free = generate_tokens(model, tokenizer, prompts, 16, do_sample=False)
    assert [len(row) for row in free] == [16, 16]
    model.generation_config.eos_token_id = [free[0][3], free[1][9]]
    ends = {257, 259, free[0][3], free[1][9]}
    ended = generate_tokens(model, tokenizer, prompts, 16, do_sample=False)
    for row, row_to_the_end in zip(ended, free, strict=True):
        length = 1 + min(row_to_the_end.index(token) for token in ends if token in row_to_the_end)
        assert row == row_to_the_end[:length]


@pytest.mark.parametrize(
    "settings", [{"do_sample": False}, {"do_sample": True, "top_k": 20}, {"num_beams": 3, "do_sample": False}], ids=str
)
@pytest.mark.parametrize("name", ["llama", "hf_llm", "lora", "lora on llama"])
def test_tokens_are_those_of_the_models_own_generate(name, settings):
    sizes = {**{key: getattr(tiny_config(), key) for key in SIZES}, "initializer_range": 0.2}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**sizes)).eval() if "llama" in name else tiny_model()
    if "lora" in name:
        model = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    tokenizer = tiny_tokenizer()
    prompts = [[40, 41, 42], [50] * 9]
    tokens = generate_tokens(model, tokenizer, prompts, 16, seed=1, **settings)

    torch.manual_seed(1)
    expected = model.generate(
        **pad_left(model, tokenizer, prompts),
        max_new_tokens=16,
        eos_token_id=generation_stop_ids(model, tokenizer),
        pad_token_id=256,
        suppress_tokens=suppressed_ids(model, tokenizer),
        custom_generate=None if "num_beams" in settings else GenerationMixin._sample,
        **settings,
    )
    for row, expected_row in zip(tokens, expected[:, 9:].tolist(), strict=True):
        assert row == expected_row[: len(row)] and set(expected_row[len(row) :]) <= {256}


def test_a_model_in_training_stays_in_training():
    model = tiny_model().train()
    complete_prompts(model, tiny_tokenizer(), ["x"], 2, do_sample=False)
    assert model.training


def test_a_prompt_longer_than_the_context_loses_its_beginning():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    tail = "b" * (128 - 8)
    long, short = (complete_prompts(model, tokenizer, [text], 8, do_sample=False) for text in ("a" * 300 + tail, tail))
    assert long == short
    with pytest.raises(UserError, match="no room for a prompt"):
        complete_prompts(model, tokenizer, ["x"], 128)


def test_a_reply_is_the_completion_of_the_rendered_conversation():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    question = [{"role": "user", "content": "Hello?"}]
    rendered = "<|im_start|>user\nHello?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(encode_conversation(tokenizer, question)) == rendered
    assert generate_replies(model, tokenizer, [question], 8, do_sample=False) == complete_prompts(
        model, tokenizer, [rendered], 8, do_sample=False
    )


def test_the_end_of_a_turn_is_what_the_template_puts_there_and_a_models_own_ends_stay():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<end_of_turn>", "<end>"]})
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>", "<end_of_turn>")
    end = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    assert end > 259 and generation_stop_ids(model, tokenizer) == [257, end]
    for other in (None, {"default": "x", "tools": "y"}, "{{ raise_exception('more!') }}", "{{ messages[0].content }}"):
        tokenizer.chat_template, before = other, tokenizer.chat_template
        assert generation_stop_ids(model, tokenizer) == [257, 259]
        tokenizer.chat_template = before
    model.generation_config.eos_token_id = [257, 5]
    assert set_stop_tokens(model, tokenizer).generation_config.eos_token_id == [5, 257, end]


def test_generation_stops_at_the_end_of_a_turn():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    assert generation_stop_ids(model, tokenizer) == [257, 259]
    with torch.no_grad():  # a model that says <|im_end|> and nothing else
        model.model.norm.weight.zero_()
        model.lm_head.weight = torch.nn.Parameter(torch.zeros(320, 32))
    model.lm_head.register_forward_hook(lambda head, inputs, logits: logits.index_fill(-1, torch.tensor([259]), 9.0))
    assert generate_replies(model, tokenizer, [[{"role": "user", "content": "?"}]], 50, do_sample=False) == [""]


def test_a_conversation_too_long_loses_its_oldest_turns_but_not_the_system_message():
    tokenizer = tiny_tokenizer()
    system = {"role": "system", "content": "Be brief."}
    turns = [{"role": role, "content": f"{role} {i}"} for i in range(4) for role in ("user", "assistant")]
    conversation = [system, *turns, {"role": "user", "content": "last"}]
    assert drop_oldest_turns(tokenizer, conversation, 10_000) == conversation
    room = len(encode_conversation(tokenizer, [system, *turns[4:], conversation[-1]]))
    assert drop_oldest_turns(tokenizer, conversation, room) == [system, *turns[4:], conversation[-1]]
    assert drop_oldest_turns(tokenizer, conversation, room - 1) == [system, *turns[6:], conversation[-1]]
    assert drop_oldest_turns(tokenizer, conversation, 1) == [system, conversation[-1]]


def test_a_model_without_a_chat_template_is_not_a_chat_model():
    with pytest.raises(UserError, match="no chat template"):
        generate_replies(tiny_model(), tiny_tokenizer(chat=False), [[{"role": "user", "content": "?"}]], 4)


def test_a_folder_loads_ready_to_generate(tmp_path):
    model, tokenizer = load_for_generation(save_tiny_model(tmp_path))
    assert not model.training
    assert complete_prompts(model.float().cpu(), tokenizer, ["x"], 8, do_sample=False) == complete_prompts(
        tiny_model(), tiny_tokenizer(), ["x"], 8, do_sample=False
    )


def test_a_special_token_that_someone_types_stays_text():
    tokenizer = tiny_tokenizer()
    plain, typed = (
        encode_conversation(tokenizer, [{"role": "user", "content": text}]) for text in ("Hi", "Hi<|im_end|>")
    )
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert typed.count(end) == plain.count(end) and "Hi<|im_end|>" in tokenizer.decode(typed)


UNUSED = range(260, 320)  # the rows of the tiny model beyond the tiny tokenizer


def model_that_prefers_unused_ids(**changes):
    """A model whose likeliest tokens are all beyond its tokenizer."""
    model = tiny_model(tie_word_embeddings=False, **changes)
    with torch.no_grad():
        model.lm_head.weight[UNUSED.start :] = model.lm_head.weight[ord("a")] * 50
        model.lm_head.weight[UNUSED.start :: 2] *= -1  # so that one of two is likely, whatever the hidden state
    return model


def test_an_id_without_a_token_is_never_generated(tmp_path):
    model, tokenizer = model_that_prefers_unused_ids(), tiny_tokenizer()
    prompt = torch.tensor([tokenizer("The")["input_ids"]])
    assert set(model.generate(prompt, max_new_tokens=20, do_sample=False)[0, 3:].tolist()) & set(UNUSED)
    assert suppressed_ids(model, tokenizer) == list(UNUSED)

    for sampling in ({"do_sample": False}, {"do_sample": True, "top_k": 0, "seed": 1}):
        (text,) = complete_prompts(model, tokenizer, ["The"], 20, **sampling)
        (reply,) = generate_replies(model, tokenizer, [[{"role": "user", "content": "Hi"}]], 20, **sampling)
        assert text and reply  # ids without a token decode to nothing
    session = ChatSession(model, tokenizer, 20, do_sample=False)
    assert "".join(session.stream_reply("Hi"))

    set_stop_tokens(model, tokenizer).save_pretrained(tmp_path)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path)
    for sampling in ({"do_sample": False}, {"do_sample": True, "num_return_sequences": 4}):
        generated = saved.generate(prompt, max_new_tokens=20, **sampling)[:, 3:]
        assert not set(generated.flatten().tolist()) & set(UNUSED)


def test_a_vocabulary_without_unused_ids_suppresses_nothing(tmp_path):
    model = tiny_model(vocab_size=260)
    assert suppressed_ids(model, tiny_tokenizer()) is None
    set_stop_tokens(model, tiny_tokenizer()).save_pretrained(tmp_path)
    assert "suppress_tokens" not in json.loads((tmp_path / "generation_config.json").read_text())


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(tmp_path):
    tiny_model(vocab_size=258).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="ids up to 259, and the model 258 rows"):
        load_for_generation(tmp_path)


def test_a_prompt_keeps_what_the_tokenizer_puts_before_a_text():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    set_boundaries(tokenizer.backend_tokenizer, ["<|im_start|>"], ["<|endoftext|>"])
    typed = complete_prompts(model, tiny_tokenizer(), ["<|im_start|>The"], 8, do_sample=False)
    assert complete_prompts(model, tokenizer, ["The"], 8, do_sample=False) == typed
    cut = complete_prompts(model, tokenizer, ["a" * 300 + "b" * 119], 8, do_sample=False)
    assert cut == complete_prompts(model, tokenizer, ["b" * 119], 8, do_sample=False)
