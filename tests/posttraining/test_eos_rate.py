from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset

from hf_llm.core.labels import IGNORE_INDEX
from hf_llm.model.load import build_model
from hf_llm.posttraining.eos_rate import collect_prompts, count_ended_completions, measure_eos_rate
from hf_llm.tokenization.chat_encoding import encode_chat
from tests.byte_tokenizer import byte_tokenizer

SECTION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


@pytest.fixture
def model(tokenizer):
    torch.manual_seed(0)
    return build_model(SECTION, tokenizer)


def rows(tokenizer, count):
    made = []
    for number in range(count):
        ids, mask = encode_chat(
            tokenizer, [{"role": "user", "content": f"{number}?"}, {"role": "assistant", "content": "Yes."}]
        )
        labels = [token if learnt else IGNORE_INDEX for token, learnt in zip(ids, mask, strict=True)]
        made.append({"input_ids": ids, "labels": labels})
    return Dataset.from_list(made)


def that_only_says(model, token):
    """The model made to say one token always: its final norm gives ones, its head counts them for that token alone."""
    with torch.no_grad():
        model.model.norm.weight.zero_()
        model.lm_head.weight.zero_()
    model.lm_head.forward = lambda hidden, labels=None: torch.nn.functional.one_hot(
        torch.full(hidden.shape[:-1], token), model.config.vocab_size
    ).float()
    return model


def trainer_of(model, tokenizer):
    return SimpleNamespace(
        model=model,
        processing_class=tokenizer,
        accelerator=SimpleNamespace(unwrap_model=lambda model: model),
        is_deepspeed_enabled=False,
        is_fsdp_enabled=False,
        is_distributed_loading_by_transformers=False,
    )


def test_a_prompt_is_a_row_up_to_its_first_answer(tokenizer):
    document = {"input_ids": [20, 21], "labels": [20, 21]}
    data = Dataset.from_list([document, *rows(tokenizer, 25)])
    prompts = collect_prompts(data)
    assert len(prompts) == 20
    assert tokenizer.decode(prompts[0]) == "<|im_start|>user\n0?<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(("token", "rate"), [("<|im_end|>", 1.0), ("<|endoftext|>", 1.0), ("A", 0.0)])
def test_the_stop_rate_is_the_share_of_answers_that_end(model, tokenizer, token, rate, capsys):
    model = that_only_says(model, tokenizer.convert_tokens_to_ids(token))
    found = measure_eos_rate(trainer_of(model.train(), tokenizer), rows(tokenizer, 6), Path("nowhere"))
    assert (found["stop_rate"], found["stop_prompts"], found["stop_limit"]) == (rate, 6, 64)
    assert model.training
    said = "WARNING: the model does not stop: 6 of 6 answers have no end token within 64 tokens"
    assert (said in capsys.readouterr().out) == ("stop_warning" in found) == (rate == 0)


def test_a_prompt_longer_than_the_context_loses_its_start(model, tokenizer):
    model = that_only_says(model, tokenizer.eos_token_id)
    assert count_ended_completions(model, tokenizer, [[20] * 500, [20] * 3], 64) == 2


def test_without_questions_nothing_is_measured(model, tokenizer):
    documents = Dataset.from_list([{"input_ids": [20, 21], "labels": [20, 21]}])
    assert measure_eos_rate(trainer_of(model, tokenizer), documents, Path("nowhere")) == {}
