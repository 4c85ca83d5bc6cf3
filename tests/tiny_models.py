"""A model and a tokenizer small enough to make in a test."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from hf_llm.inference.generate import set_stop_tokens
from hf_llm.model.configuration_hf_llm import HfLlmConfig

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_tokenizer(chat: bool = True) -> PreTrainedTokenizerFast:
    """Bytes as tokens, and the four special tokens: 260 in all."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|pad|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|endoftext|>")
    if chat:
        fast.chat_template = CHATML
    return fast


def tiny_config(**changes) -> HfLlmConfig:
    sizes = {
        "vocab_size": 320,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "pad_token_id": 256,
        "eos_token_id": 257,
    }
    return HfLlmConfig(**{**sizes, **changes})


def tiny_model(attention: str = "sdpa", **changes) -> torch.nn.Module:
    """A causal language model whose weights are ten times as large as new ones, so that differences show."""
    torch.manual_seed(0)
    config = tiny_config(**{"initializer_range": 0.2, **changes})
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


def save_tiny_model(folder: Path, chat: bool = True) -> Path:
    """The tiny model with its tokenizer in a folder, as a training stage leaves them."""
    tokenizer = tiny_tokenizer(chat)
    set_stop_tokens(tiny_model(), tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
