"""What a training step yields and takes, for Trainer's logs: tokens per second, MFU, memory, perplexity."""

import math
import sys
import time
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import torch
from transformers import Trainer, TrainerCallback

from hf_llm.core.console import print_main
from hf_llm.hardware.memory_counters import memory_in_use
from hf_llm.hardware.peak_flops import peak_of
from hf_llm.parallel.layout import launched_layout


class ThroughputCallback(TrainerCallback):
    """Adds to the training logs `tokens_per_second` and `tokens_seen` (all processes), `mfu` or `mfu_of_measured_peak`,
    the main process's `memory_in_use`, and `perplexity`; to the evaluation logs `eval_perplexity` and
    `eval_bits_per_byte`.

    Tokens are counted in the batches Trainer fetches, padding left out; where those hold none, because the answers to
    learn from are yet to be sampled, the trainer counts them in `state.num_input_tokens_seen`, as TRL's do; where
    neither does, nothing is said of tokens. Time runs from a fetch to the log and leaves out evaluation and saving.
    `mfu` is against a data sheet's peak, `mfu_of_measured_peak` against a matrix product timed on this machine; without
    `flops_per_token` (forward and backward, of one token; by the length of the sequences, where that changes) there is
    neither. After a resume `tokens_seen` goes on from the last entry, what came between that and the checkpoint taken
    at its mean per step. `likelihood` says whether the loss is nats per token, as in pretraining and SFT, but not in
    DPO. `stage_at` gives the stage of a curriculum that a step belongs to, logged as `curriculum_stage`.

    Must stand before the reporters among the callbacks (`watch` sees to that): they log what it leaves in the
    dictionary.
    """

    def __init__(
        self,
        trainer: Trainer,
        flops_per_token: float | Mapping[int, float] | None = None,
        bytes_per_token: float | None = None,
        likelihood: bool = True,
        stage_at: Callable[[int], int] | None = None,
    ):
        self.flops_per_token = flops_per_token
        self.bytes_per_token = bytes_per_token
        self.likelihood = likelihood
        self.stage_at = stage_at
        layout = launched_layout()
        self._copies = layout.processes // layout.data  # processes that fetch the same batches
        self._tokens: int | torch.Tensor = 0  # of this process, since the last log
        self._flops: float | torch.Tensor = 0.0  # they took, where that depends on the length
        self._seen = 0  # of all processes, counted by the trainer, up to the last log
        self._excluded = 0.0  # seconds of evaluation and saving since the last log
        self._started: float | None = None  # of the window, at the first fetch
        self._paused: float | None = None  # since when an evaluation or a save is under way
        # Callbacks never see a batch; fetching is Trainer's one public method that sees each of them, in this process.
        trainer.get_batch_samples = self._counted(trainer.get_batch_samples)

    def _counted(self, fetch: Callable) -> Callable:
        @wraps(fetch)
        def get_batch_samples(*args: Any, **kwargs: Any) -> tuple[list, Any]:
            self._resume()
            batches, items = fetch(*args, **kwargs)
            for batch in batches:
                tokens = tokens_in(batch)
                self._tokens = self._tokens + tokens
                if isinstance(self.flops_per_token, Mapping):
                    self._flops = self._flops + tokens * self.flops_per_token[batch["input_ids"].shape[-1]]
            return batches, items

        return get_batch_samples

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self._tokens, self._flops, self._excluded, self._started, self._paused = 0, 0.0, 0.0, None, None
        self._seen = state.num_input_tokens_seen
        self._total = tokens_before(state)
        self._peak = None
        if self.flops_per_token:
            peak = peak_of(args.device, _compute_type(args, model))
            print_main(f"MFU is measured against {peak} ({args.device})")
            self._peak = summed(peak.flops, args.device), "mfu_of_measured_peak" if peak.measured else "mfu"

    def on_step_end(self, args, state, control, **kwargs):
        self._pause_before_interruption(args, control)

    def on_epoch_end(self, args, state, control, **kwargs):
        self._pause_before_interruption(args, control)

    def on_log(self, args, state, control, logs=None, **kwargs):
        extra = {}
        if "loss" in logs and self._started is not None:
            extra = self._speed(args.device, state.num_input_tokens_seen)
            extra |= memory_in_use(args.device)
            if self.stage_at is not None:
                extra["curriculum_stage"] = self.stage_at(state.global_step)
        for key, name in (("loss", "perplexity"), ("eval_loss", "eval_perplexity")):
            if self.likelihood and logs.get(key, math.inf) < math.log(sys.float_info.max):
                extra[name] = math.exp(logs[key])
        if self.likelihood and self.bytes_per_token and "eval_loss" in logs:
            extra["eval_bits_per_byte"] = logs["eval_loss"] / math.log(2) / self.bytes_per_token
        logs.update(extra)
        state.log_history[-1].update(extra)  # Trainer.log has put a copy there already

    def _speed(self, device: torch.device, seen: int) -> dict[str, float]:
        now = self._paused or time.perf_counter()
        seconds = now - self._started - self._excluded
        tokens = summed(float(self._tokens), device) / self._copies or seen - self._seen
        cost = self.flops_per_token
        if isinstance(cost, Mapping):
            cost = float(self._flops) / float(self._tokens)
        self._tokens, self._flops, self._seen, self._excluded, self._started = 0, 0.0, seen, 0.0, now
        if not tokens:
            return {}
        self._total += tokens
        rate = tokens / seconds
        speed = {"tokens_per_second": round(rate, 1), "tokens_seen": round(self._total)}
        if self._peak:
            peak, name = self._peak
            speed[name] = round(rate * cost / peak, 4)
        return speed

    def _pause_before_interruption(self, args, control) -> None:
        if self._paused is None and (control.should_evaluate or control.should_save):
            if args.device.type != "cpu":
                torch.accelerator.synchronize(args.device)  # what is still queued is training, not evaluation
            self._paused = time.perf_counter()

    def _resume(self) -> None:
        now = time.perf_counter()
        if self._started is None:
            self._started = now
        elif self._paused is not None:
            self._excluded += now - self._paused
        self._paused = None


def tokens_in(batch: Mapping[str, torch.Tensor] | list) -> int | torch.Tensor:
    """Tokens of one micro-batch, padding left out: a sum that stays on the device where there is a mask (batch,
    length). 0 for rows that are not tokens yet."""
    if not isinstance(batch, Mapping):
        return 0
    mask = batch.get("attention_mask")
    if mask is not None and mask.dim() == 2:
        return mask.sum()
    return sum(batch[name].numel() for name in ("input_ids", "decoder_input_ids") if name in batch)


def tokens_before(state) -> float:
    """`tokens_seen` up to the step that a training resumes at; 0 at its start."""
    for entry in reversed(state.log_history):
        if entry.get("tokens_seen"):
            return entry["tokens_seen"] * state.global_step / entry["step"]
    return 0.0


def _compute_type(args, model) -> torch.dtype:
    if args.mixed_precision == "fp8":
        return torch.bfloat16  # of what is not in 8 bits: a figure that compares with other trainings
    if args.bf16 or args.fp16:
        return torch.bfloat16 if args.bf16 else torch.float16
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def summed(value: float, device: torch.device) -> float:
    """The sum of `value` over all processes."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return value
    total = torch.tensor(value, dtype=torch.float64 if device.type != "mps" else torch.float32, device=device)
    torch.distributed.all_reduce(total)
    return total.item()
