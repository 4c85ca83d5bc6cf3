"""A trainer for every kind of stage, with seven uneven rows to evaluate on, for `test_exact_evaluation.py`."""

import gc
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, load_from_disk
from peft import LoraConfig
from transformers import BertConfig, BertForMaskedLM, T5Config, T5ForConditionalGeneration, Trainer, TrainingArguments
from trl import DPOConfig, GRPOConfig, KTOConfig, RewardConfig, RLOOConfig, SFTConfig

from hf_llm.core.distributed import init_cpu_process_group
from hf_llm.core.labels import IGNORE_INDEX
from hf_llm.model.modeling_hf_llm import HfLlmForSequenceClassification
from hf_llm.posttraining.dpo_trainer import LoggedDPOTrainer
from hf_llm.posttraining.group_trainer import ResumableGRPOTrainer, ResumableRLOOTrainer
from hf_llm.posttraining.kto_trainer import CompletionKTOTrainer
from hf_llm.posttraining.ppo.trainer import PPOConfig, PPOTrainer
from hf_llm.posttraining.reward_trainer import PairwiseRewardTrainer
from hf_llm.posttraining.sft_trainer import SupervisedSFTTrainer
from hf_llm.training.pretraining_trainer import PretrainingTrainer
from tests.tiny_models import tiny_config, tiny_model, tiny_tokenizer

ROWS = 7  # of an evaluation: a prime, which no batch size divides and no number of processes either
ANSWERS = [
    "no",
    "The red fox sees the crow.",
    "yes, it is",
    "a",
    "Green rivers follow",
    "stone",
    "the white king paints",
]
NOT_MEASURED = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")


def settings(folder: Path, batch: int, **changes: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "disable_tqdm": True,
        "max_steps": 1,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": batch,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        "save_strategy": "no",
        **changes,
    }


class Windows(torch.utils.data.Dataset):
    """Rows of random tokens, of which a different number has labels; some are hidden where `mask` is given."""

    def __init__(self, mask: int | None = None, target: int = 0):
        self.mask = mask
        self.target = target  # labels of an encoder-decoder, which are a row of their own

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if index >= ROWS:
            raise IndexError(index)
        ids = torch.randint(4, 60, (16,), generator=torch.Generator().manual_seed(index))
        labels = ids.clone() if not self.target else ids[: self.target].clone()
        labels[: 2 * index % 13] = IGNORE_INDEX
        if self.target:
            labels[-1] = 7
        if self.mask is not None:
            ids = torch.where(labels == IGNORE_INDEX, ids, self.mask)
        return {"input_ids": ids, "labels": labels}


def pretraining(model: torch.nn.Module, rows: Windows, folder: Path, batch: int, **arguments: Any) -> Trainer:
    args = TrainingArguments(**settings(folder, batch))
    return PretrainingTrainer(model, args, train_dataset=rows, eval_dataset=rows, **arguments)


def causal(folder: Path, batch: int) -> Trainer:
    return pretraining(tiny_model(), Windows(), folder, batch)


def masked(folder: Path, batch: int) -> Trainer:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = BertForMaskedLM(BertConfig(vocab_size=64, max_position_embeddings=32, initializer_range=0.5, **sizes))
    return pretraining(model, Windows(mask=1), folder, batch, accuracy_key="masked_accuracy")


def spans(folder: Path, batch: int) -> Trainer:
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
    model = T5ForConditionalGeneration(T5Config(vocab_size=64, pad_token_id=0, eos_token_id=1, **sizes))
    return pretraining(model, Windows(target=9), folder, batch, accuracy_key="target_accuracy")


def sft(folder: Path, batch: int, **changes: Any) -> Trainer:
    rows = []
    for number in range(ROWS):
        ids = torch.randint(0, 256, (6 + 4 * number,), generator=torch.Generator().manual_seed(number)).tolist()
        questions = (number * 3) % 5 + 2
        rows.append({"input_ids": ids, "labels": [IGNORE_INDEX] * questions + ids[questions:]})
    data = on_disk(rows, folder)
    args = SFTConfig(**settings(folder, batch, max_length=64, **changes))
    tokenizer = tiny_tokenizer()
    return SupervisedSFTTrainer(tiny_model(), args, train_dataset=data, eval_dataset=data, processing_class=tokenizer)


def on_disk(rows: list[dict], folder: Path) -> Dataset:
    """The rows as read from `folder`, where TRL caches what it makes of them for all processes."""
    if os.environ.get("RANK", "0") == "0":
        Dataset.from_list(rows).save_to_disk(folder / "rows")
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    return load_from_disk(folder / "rows")


def message(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def pairs() -> list[dict]:
    rows = []
    for number, answer in enumerate(ANSWERS):
        prompt = message("user", "What is it" + "?" * number)
        rejected = message("assistant", "no " * (number % 3 + 1))
        rows.append({"prompt": prompt, "chosen": message("assistant", answer), "rejected": rejected})
    return rows


def moved(trainer: Trainer) -> Trainer:
    """Move the weights of a trainer whose reference is the model before, so that margins and KL are not 0."""
    torch.manual_seed(1)
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    return trainer


def dpo(folder: Path, batch: int, lora: bool = False, **changes: Any) -> Trainer:
    args = DPOConfig(**settings(folder, batch, precompute_ref_log_probs=not lora, max_length=64, **changes))
    peft_config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM") if lora else None
    data = on_disk(pairs(), folder)
    trainer = LoggedDPOTrainer(
        tiny_model(),
        args=args,
        train_dataset=data,
        eval_dataset=data,
        processing_class=tiny_tokenizer(),
        peft_config=peft_config,
    )
    return moved(trainer)


def kto(folder: Path, batch: int, lora: bool = False, **changes: Any) -> Trainer:
    rows = []
    for number, answer in enumerate(ANSWERS):
        prompt = message("user", "What is it" + "?" * number)
        rows.append({"prompt": prompt, "completion": message("assistant", answer), "label": number % 3 > 0})
    data = on_disk(rows, folder)
    args = KTOConfig(**settings(folder, batch, precompute_ref_log_probs=not lora, max_length=64, **changes))
    peft_config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM") if lora else None
    trainer = CompletionKTOTrainer(
        tiny_model(),
        args=args,
        train_dataset=data,
        eval_dataset=data,
        processing_class=tiny_tokenizer(),
        peft_config=peft_config,
    )
    return moved(trainer)


def reward(folder: Path, batch: int) -> Trainer:
    torch.manual_seed(0)
    model = HfLlmForSequenceClassification(tiny_config(num_labels=1, initializer_range=0.2))
    rows = []
    for number, answer in enumerate(ANSWERS):
        ids = [list(answer.encode()), list(b"no " * (number % 3 + 1))]
        rows.append(dict(zip(("chosen_ids", "rejected_ids"), ids, strict=True)))
    data = on_disk(rows, folder)
    args = RewardConfig(**settings(folder, batch, max_length=64))
    return PairwiseRewardTrainer(
        model, args=args, train_dataset=data, eval_dataset=data, processing_class=tiny_tokenizer()
    )


def share_of_letter(prompts: list, completions: list, **columns: Any) -> list[float]:
    return [answer[0]["content"].count("e") + len(answer[0]["content"]) / 7 for answer in completions]


def groups(trainer_class: type[Trainer], arguments_class: type, folder: Path, batch: int, each: int = 1) -> Trainer:
    """Completions drawn at random, top-p included."""
    rows = on_disk([{"prompt": message("user", "What is it" + "?" * number)} for number in range(ROWS)], folder)
    sampling = {
        "top_p": 0.9,
        "max_completion_length": 8,
        "num_generations": 2,
        "num_generations_eval": each,
        "beta": 0.1,
    }
    return moved(
        trainer_class(
            tiny_model(),
            reward_funcs=[share_of_letter],
            args=arguments_class(**settings(folder, batch, **sampling)),
            train_dataset=rows,
            eval_dataset=rows,
            processing_class=tiny_tokenizer(),
            peft_config=LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"),  # its reference is at hand
        )
    )


def ppo(folder: Path, batch: int) -> Trainer:
    rows = on_disk([{"prompt": message("user", "What is it" + "?" * number)} for number in range(ROWS)], folder)
    args = PPOConfig(**settings(folder, batch, max_completion_length=8, eval_on_start=False))
    functions = [share_of_letter]
    trainer = PPOTrainer(tiny_model(), args, rows, rows, tiny_tokenizer(), functions)
    torch.manual_seed(1)
    for parameter in trainer.actor_critic.policy.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return trainer


KINDS: dict[str, Callable[[Path, int], Trainer]] = {
    "causal": causal,
    "masked": masked,
    "spans": spans,
    "sft": sft,
    "sft, packed": partial(sft, packing=True),
    "dpo": dpo,
    "dpo, adapter": partial(dpo, lora=True),
    "dpo, three losses": partial(dpo, loss_type=["sigmoid", "bco_pair", "sft"]),
    "kto": kto,
    "kto, adapter": partial(kto, lora=True),
    "kto, unpaired": partial(kto, loss_type="apo_zero_unpaired"),
    "reward": reward,
    "grpo": partial(groups, ResumableGRPOTrainer, GRPOConfig),
    "grpo, groups of two": partial(groups, ResumableGRPOTrainer, GRPOConfig, each=2),
    "rloo": partial(groups, ResumableRLOOTrainer, RLOOConfig),
    "ppo": ppo,
}


def measure(kind: str, folder: Path, batch: int) -> dict[str, float]:
    """The numbers of an evaluation, without what depends on the clock."""
    metrics = KINDS[kind](folder, batch).evaluate()
    return {
        name: value
        for name, value in metrics.items()
        if name.startswith("eval_") and not name.endswith((*NOT_MEASURED, "num_tokens"))
    }


def measure_in_rank(folder: Path, kinds: list[str], batch: int, rank: int, processes: int, port: int) -> None:
    """Measure each kind as one of several processes; each writes what it has to rank-N.json."""
    gc.freeze()
    torch.set_num_threads(1)
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()}, MASTER_ADDR="127.0.0.1")
    init_cpu_process_group(300)
    numbers = {kind: measure(kind, folder / str(number), batch) for number, kind in enumerate(kinds)}
    (folder / f"rank-{rank}.json").write_text(json.dumps(numbers))
