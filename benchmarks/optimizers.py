"""Optimizers on real text at equal steps: bits per byte, seconds of a step, bytes of state for each parameter.

    HF_LLM_DATA=... python benchmarks/optimizers.py                                   # AdamW and Muon
    HF_LLM_DATA=... python benchmarks/optimizers.py --steps 20 --optimizers adafactor adamw_torch_8bit galore_adamw

A byte-level model of 3 million parameters reads tinyshakespeare; 200 windows of its last tenth are held out. Each
optimizer begins with the same weights and reads the same batches; they take turns, so that all suffer alike from what
else the machine does. `step s` and `update` are seconds of CPU time, of a step and of the optimizer's part in it.
"""

import argparse
import math
import os
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from torch.utils.data import Dataset
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from hf_llm.model.configuration_hf_llm import HfLlmConfig
from hf_llm.model.modeling_hf_llm import HfLlmForCausalLM
from hf_llm.training.fault_tolerance.checkpoint_callback import plain_parts
from hf_llm.training.optimizers import build_arguments
from hf_llm.training.pretraining_trainer import PretrainingTrainer

CONTEXT, ROWS = 128, 16


class Windows(Dataset):
    """A text in windows of CONTEXT bytes."""

    def __init__(self, text: bytes):
        self.bytes = torch.tensor(list(text)).unfold(0, CONTEXT, CONTEXT)

    def __len__(self) -> int:
        return len(self.bytes)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.bytes[index], "labels": self.bytes[index]}


class Clock(TrainerCallback):
    """CPU seconds of each step, and of the optimizer's part in it."""

    def __init__(self) -> None:
        self.steps, self.updates = [], []

    def on_step_begin(self, *args, **kwargs):
        self.begun = time.process_time()

    def on_pre_optimizer_step(self, *args, **kwargs):
        self.updating = time.process_time()

    def on_optimizer_step(self, *args, **kwargs):
        self.updates.append(time.process_time() - self.updating)

    def on_step_end(self, *args, **kwargs):
        self.steps.append(time.process_time() - self.begun)


def new_model() -> HfLlmForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 6, "num_attention_heads": 6}
    config = HfLlmConfig(vocab_size=256, max_position_embeddings=CONTEXT, num_key_value_heads=6, **shape)
    return HfLlmForCausalLM(config)


def state_bytes(trainer: PretrainingTrainer) -> float:
    """Bytes that the optimizer keeps for each parameter; what projects gradients counts with what it holds."""
    values = [value for state in trainer.optimizer.state.values() for value in state.values()]
    projectors = [value for value in values if hasattr(value, "__dict__") and not torch.is_tensor(value)]
    values += [inner for projector in projectors for inner in vars(projector).values()]
    tensors = [part for value in values if torch.is_tensor(value) for part in plain_parts(value)]
    return sum(tensor.nbytes for tensor in tensors) / trainer.model.num_parameters()


def train(name: str, rate: float, steps: int, train: Windows, held_out: Windows) -> None:
    """Print a row of the table."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            **{"output_dir": folder, "use_cpu": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True},
            **{"optim": name, "learning_rate": rate, "max_steps": steps, "warmup_steps": steps // 10, "seed": 1},
            **{"lr_scheduler_type": "cosine_with_min_lr", "weight_decay": 0.1, "adam_beta2": 0.95},
            **{"per_device_train_batch_size": ROWS, "logging_steps": steps, "prediction_loss_only": True},
        }
        arguments = build_arguments(TrainingArguments, settings)
        data = {"train_dataset": train, "eval_dataset": held_out}
        trainer = PretrainingTrainer(new_model(), arguments, callbacks=[clock], **data)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        bits = trainer.evaluate()["eval_loss"] / math.log(2)
    row = f"{name:20} {rate:8.0e} {bits:8.3f} {median(clock.steps):8.3f} {median(clock.updates):8.3f}"
    print(row, f"{state_bytes(trainer):8.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimizers", nargs="+", default=["adamw_torch_fused", "muon"])
    parser.add_argument("--rates", nargs="+", type=float, default=[1e-3, 3e-3, 1e-2])
    parser.add_argument("--steps", type=int, default=300)
    arguments = parser.parse_args()
    text = Path(os.environ["HF_LLM_DATA"], "tinyshakespeare", "input.txt").read_bytes()
    cut = len(text) * 9 // 10
    print(f"{'optimizer':20} {'rate':>8} {'bits/B':>8} {'step s':>8} {'update':>8} {'B/param':>8}")
    for rate in arguments.rates:
        for name in arguments.optimizers:
            train(name, rate, arguments.steps, Windows(text[:cut]), Windows(text[cut : cut + 200 * CONTEXT]))


if __name__ == "__main__":
    main()
