"""A tiny model with the tokenizer and the context of the real one, on which a trainer is built before that exists.

Most of what a library refuses in its settings it refuses while it builds its trainer, whatever the model's size.
"""

import json
import math
from itertools import product
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from hf_llm.core.manifest import write_json
from hf_llm.core.recipe import Settings
from hf_llm.data.chat.loaders import ConversationSource
from hf_llm.data.corpus.splits import SPLIT_NAMES
from hf_llm.data.tokens.token_shards import INDEX, smallest_id_dtype
from hf_llm.model.configuration_hf_llm import HfLlmConfig
from hf_llm.model.load import VOCABULARY_MULTIPLE, special_token_ids
from hf_llm.model.modeling_hf_llm import HfLlmForCausalLM, HfLlmForSequenceClassification
from hf_llm.tokenization.train import BYTE_TOKENS, TokenizerSection, train_tokenizer

# Keys of a `training` section that depend on the device, the launch or the network. They are checked elsewhere.
DEVICE_KEYS = (
    "bf16", "fp16", "tf32", "bf16_full_eval", "fp16_full_eval", "half_precision_backend",
    "torch_compile", "torch_compile_backend", "torch_compile_mode", "use_liger_kernel", "liger_kernel_config",
    "deepspeed", "fsdp", "fsdp_config", "parallelism_config", "accelerator_config", "optim", "optim_args",
    "optim_target_modules", "use_vllm", "push_to_hub", "hub_model_id", "report_to", "resume_from_checkpoint",
)  # fmt: skip

# Keys of a `lora` section that do not name parts of the real model.
LORA_KEYS = ("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "bias")

# Takes the place of the user's reward functions, which may need columns that the made-up rows lack.
STAND_IN_REWARD = f"{__name__}:score_stand_in"

# A byte-level vocabulary writes up to so many tokens where the run's own tokenizer will write one.
BYTES_PER_TOKEN_LIMIT = 16


def build_stand_in_tokenizer(section: TokenizerSection, denoising_tokens: list[str]) -> PreTrainedTokenizerBase:
    """Build a byte-level tokenizer with the special tokens and the chat template that the run's own will have.

    Raises UserError for a chat template that cannot be read.
    """
    smallest = BYTE_TOKENS + 2 * VOCABULARY_MULTIPLE + len(denoising_tokens)
    vocabulary = math.ceil(smallest / VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    pairs_of_letters = ["".join(pair) for pair in product(ascii_lowercase, repeat=2)]
    stand_in = TokenizerSection(vocab_size=vocabulary, chat_template=section.chat_template)
    return train_tokenizer([" ".join(pairs_of_letters)] * 2, stand_in, denoising_tokens)


def save_stand_in(
    folder: Path, tokenizer: PreTrainedTokenizerBase, context: int, is_reward_model: bool = False
) -> Path:
    """Save a model of one tiny layer that sees `context` tokens, with `tokenizer`, and return `folder`."""
    config = HfLlmConfig(
        vocab_size=math.ceil(len(tokenizer) / VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=context,
        **special_token_ids(tokenizer),
    )
    if is_reward_model:
        config.num_labels = 1
        model = HfLlmForSequenceClassification(config)
    else:
        model = HfLlmForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def stand_in_training(settings: dict[str, Any]) -> Settings:
    """Return a `training` section for a stand-in: on the CPU, and without the keys of `DEVICE_KEYS`."""
    kept = {key: value for key, value in settings.items() if key not in DEVICE_KEYS and not key.startswith("vllm_")}
    return Settings(kept, use_cpu=True, report_to="none")


def stand_in_lora(settings: dict[str, Any] | None) -> Settings | None:
    """Return a `lora` section for a stand-in, whose adapters lie on every linear layer."""
    if settings is None:
        return None
    kept = {key: settings[key] for key in LORA_KEYS if key in settings}
    return Settings(kept, target_modules="all-linear")


def score_stand_in(completions: list[Any], **columns: Any) -> list[float]:
    """Give every completion the same reward."""
    return [0.0] * len(completions)


def write_stand_in_rows(path: Path, count: int, pairs: bool) -> ConversationSource:
    """Write `count` short rows: pairs of answers of which one is preferred, or conversations."""
    with open(path, "w", encoding="utf-8") as file:
        for number in range(count):
            question = f"Say {number}."
            answer = str(number)
            if pairs:
                row = {"prompt": question, "chosen": answer, "rejected": "No."}
            else:
                row = {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
            file.write(json.dumps(row) + "\n")
    return ConversationSource(license="unknown", path=str(path))


def write_stand_in_tokens(folder: Path, tokenizer: PreTrainedTokenizerBase, context: int) -> Path:
    """Write token shards with a few windows of `context` tokens in each split, and return `folder`."""
    folder.mkdir(parents=True)
    vocabulary = len(tokenizer)
    dtype = smallest_id_dtype(vocabulary)
    ids = np.arange(4 * context) % vocabulary
    splits = {}
    for split in SPLIT_NAMES:
        name = f"{split}-00000.bin"
        ids.astype(dtype).tofile(folder / name)
        entry = {"file": name, "tokens": len(ids), "documents": 1, "bytes": len(ids)}
        splits[split] = [entry | {"sources": {"": len(ids)}, "languages": {"": len(ids)}}]

    index = {"dtype": dtype.name, "vocab_size": vocabulary, "eos_token_id": tokenizer.eos_token_id, "splits": splits}
    write_json(folder / INDEX, index)
    return folder
