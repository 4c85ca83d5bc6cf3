"""What watching a training costs: processor seconds of the callbacks of `hf_llm.monitoring` against those of the steps.

    python benchmarks/monitoring.py
    python benchmarks/monitoring.py --logging-steps 1

Each callback's own time is taken around every event, in the process that trains: a difference between two trainings
would drown in their noise. Trains for `--steps` steps after 10 that are not counted.
"""

import argparse
import tempfile
import time

import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_llm.model.configuration_hf_llm import HfLlmConfig
from hf_llm.model.modeling_hf_llm import HfLlmForCausalLM
from hf_llm.monitoring.attach import attach_callbacks

WARM_UP = 10


class Windows(Dataset):
    """Random tokens."""

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = torch.randint(0, 4096, (256,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": ids, "labels": ids}


class Stopwatch(TrainerCallback):
    """Begins to count after the warm-up."""

    def __init__(self, spent: dict[str, float]):
        self.spent, self.began = spent, 0.0

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == WARM_UP:
            self.spent.clear()
            self.began = time.process_time()

    def on_train_end(self, args, state, control, **kwargs):
        self.took = time.process_time() - self.began


def timed(callback: TrainerCallback, spent: dict[str, float]) -> None:
    """Add up the time in each of the callback's events under its class's name."""
    name = type(callback).__name__
    for event in [event for event in dir(callback) if event.startswith("on_")]:
        act = getattr(callback, event)

        def act_timed(*arguments, act=act, **keywords):
            began = time.process_time()
            try:
                return act(*arguments, **keywords)
            finally:
                spent[name] = spent.get(name, 0.0) + time.process_time() - began

        setattr(callback, event, act_timed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--logging-steps", type=int, default=10)
    parser.add_argument("--batch", type=int, default=8, help="windows of 256 tokens in a step")
    options = parser.parse_args()
    torch.manual_seed(0)
    sizes = {"vocab_size": 4096, "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6}
    model = HfLlmForCausalLM(HfLlmConfig(**sizes, num_attention_heads=4, num_key_value_heads=4))
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=WARM_UP + options.steps,
            logging_steps=options.logging_steps,
            per_device_train_batch_size=options.batch,
            use_cpu=not torch.cuda.is_available(),
            bf16=torch.cuda.is_available(),
            save_strategy="no",
            report_to=[],
        )
        trainer = Trainer(model=model, args=arguments, train_dataset=Windows())
        before = list(trainer.callback_handler.callbacks)
        attach_callbacks(trainer, flops_per_token=1.0, price_per_hour=1.0)
        spent: dict[str, float] = {}
        for callback in trainer.callback_handler.callbacks:
            if callback not in before:
                timed(callback, spent)
        trainer.add_callback(stopwatch := Stopwatch(spent))
        trainer.train()
    count = sum(parameter.numel() for parameter in model.parameters())
    step = stopwatch.took / options.steps
    every = f"a log entry every {options.logging_steps} steps"
    print(f"\n{count / 1e6:.1f}M parameters, {step * 1e3:,.1f} ms of processor time a step, {every}")
    for name, seconds in sorted(spent.items(), key=lambda item: -item[1]):
        print(f"  {name:<22} {seconds / options.steps * 1e6:>8,.0f} µs a step")
    total = sum(spent.values())
    print(f"  {'together':<22} {total / options.steps * 1e6:>8,.0f} µs a step, {total / stopwatch.took:.3%}")


if __name__ == "__main__":
    main()
