"""What TRL's trainers of answers lack."""

import json

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel
from trl import GRPOConfig, RLOOConfig

from hf_llm.inference.generate import set_stop_tokens
from hf_llm.posttraining.group_trainer import ResumableGRPOTrainer, ResumableRLOOTrainer, add_position_ids
from hf_llm.tokenization.chat_encoding import encode_chat
from tests.tiny_models import tiny_model, tiny_tokenizer


def gpt2():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=2, n_positions=64, initializer_range=0.2)
    return GPT2LMHeadModel(config).eval()


def adapted():
    return get_peft_model(gpt2(), LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True)).eval()


@pytest.mark.parametrize("make", [gpt2, adapted, tiny_model])
@torch.no_grad()
def test_padding_on_the_left_takes_no_positions(make):
    model, tokens = make(), torch.randint(0, 250, (1, 12))
    padded = torch.nn.functional.pad(tokens, (6, 0))
    mask = torch.nn.functional.pad(torch.ones_like(tokens), (6, 0))
    alone = model(input_ids=tokens).logits
    if make is not tiny_model:
        assert (model(input_ids=padded, attention_mask=mask).logits[:, 6:] - alone).abs().max() > 0.1
    model.register_forward_pre_hook(add_position_ids, with_kwargs=True)
    torch.testing.assert_close(model(input_ids=padded, attention_mask=mask).logits[:, 6:], alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("trainer_class", "config_class"),
    [(ResumableGRPOTrainer, GRPOConfig), (ResumableRLOOTrainer, RLOOConfig)],
    ids=["grpo", "rloo"],
)
def test_an_id_without_a_token_is_never_sampled(trainer_class, config_class, tmp_path):
    tokenizer = tiny_tokenizer()
    unused = set(range(len(tokenizer), 320))
    sampled = []

    def reward(completions, completion_ids, **columns):
        sampled.extend(token for ids in completion_ids for token in ids)
        return [float(len(ids)) for ids in completion_ids]

    trainer = trainer_class(
        model=set_stop_tokens(tiny_model(), tokenizer),
        reward_funcs=reward,
        args=config_class(
            output_dir=str(tmp_path),
            max_steps=1,
            per_device_train_batch_size=16,
            num_generations=8,
            max_completion_length=40,
            beta=0.0,  # no reference, which TRL would load by name
            use_cpu=True,
            bf16=False,
            report_to="none",
            save_strategy="no",
        ),
        train_dataset=Dataset.from_dict({"prompt": [[{"role": "user", "content": "Hi"}]] * 4}),
        processing_class=tokenizer,
    )
    trainer.train()
    assert len(sampled) > 100 and not set(sampled) & unused


TEMPLATE = (
    "{% for m in messages %}{{ m.role }}:{{ m.content }}<|im_end|>{% endfor %}{% if tools %}{{ tools | tojson }}"
    "{% endif %}{% if add_generation_prompt %}assistant:{% endif %}"
)


@pytest.mark.parametrize(
    ("trainer_class", "arguments_class"), [(ResumableGRPOTrainer, GRPOConfig), (ResumableRLOOTrainer, RLOOConfig)]
)
def test_prompts_are_rendered_with_the_tools_of_their_rows(trainer_class, arguments_class, tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    prompts = [[{"role": "user", "content": f"q{number}"}] for number in range(2)]
    tools = [None, [{"name": "f"}]]
    listed = [json.dumps(each) if each else None for each in tools]
    sampled_from = []

    def reward(prompts, completions, tools, **columns):
        assert set(tools) <= set(listed)
        return [0.0] * len(prompts)

    class Recording(trainer_class):
        def _tokenize_prompts(self, prompts):
            tokenized = super()._tokenize_prompts(prompts)
            sampled_from.extend(map(tokenizer.decode, tokenized[0]))
            return tokenized

    arguments = arguments_class(
        str(tmp_path), beta=0.0, max_steps=1, per_device_train_batch_size=4, num_generations=2, max_completion_length=4,
        report_to="none", bf16=False, use_cpu=True,
    )  # fmt: skip
    rows = Dataset.from_dict({"prompt": prompts, "tools": listed})
    trainer = Recording(
        model=tiny_model(), reward_funcs=[reward], args=arguments, train_dataset=rows, processing_class=tokenizer
    )
    trainer.train()
    rendered = {
        tokenizer.decode(encode_chat(tokenizer, prompt, each, add_generation_prompt=True)[0])
        for prompt, each in zip(prompts, tools, strict=True)
    }
    assert set(sampled_from) == rendered
