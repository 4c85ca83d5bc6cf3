"""PPO on tasks whose optimum is known: a tiny model, three prompts, and rewards that can be worked out by hand."""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from hf_llm.parallel.layout import enable_cpu_sharding
from hf_llm.posttraining.ppo.trainer import PPOConfig, PPOTrainer
from tests.tiny_models import tiny_model, tiny_tokenizer

PROMPTS = ["Hello", "What is it?", "Go on, then."]
LIMIT = 12


def share_of_letter(prompts: list, completions: list, **columns: Any) -> list[float]:
    """The share of the letter e among as many characters as an answer may have: at most 1."""
    return [answer[0]["content"].count("e") / LIMIT for answer in completions]


def nearness_to_four(prompts: list, completions: list, completion_ids: list, **columns: Any) -> list[float]:
    """1 for an answer of four tokens, the end included; less for each one more or less."""
    return [1 - abs(len(ids) - 4) / LIMIT for ids in completion_ids]


def rows(count: int = 48) -> Dataset:
    prompts = [[{"role": "user", "content": PROMPTS[number % len(PROMPTS)]}] for number in range(count)]
    return Dataset.from_dict({"prompt": prompts, "number": list(range(count))})


def tiny_ppo(
    folder: Path,
    reward: Any = share_of_letter,
    peft_config: Any = None,
    critic: Any = None,
    model: torch.nn.Module | None = None,
    **changes: Any,
) -> PPOTrainer:
    """A trainer of the tiny model: rollouts of 16 answers, learnt from twice in mini-batches of 8."""
    settings = {
        "output_dir": str(folder),
        "max_steps": 12,
        "save_steps": 3,
        "logging_steps": 2,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 8,
        "gradient_accumulation_steps": 2,
        "num_mini_batches": 2,
        "num_ppo_epochs": 2,
        "max_completion_length": LIMIT,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
        "dataloader_pin_memory": False,
        "ddp_find_unused_parameters": False,
        "eval_on_start": False,
        **changes,
    }
    model = tiny_model(initializer_range=0.02) if model is None else model
    arguments = PPOConfig(**settings)
    enable_cpu_sharding(arguments)
    return PPOTrainer(
        model,
        arguments,
        rows(),
        rows(12),
        tiny_tokenizer(),
        [reward],
        peft_config=peft_config,
        critic=critic,
    )
