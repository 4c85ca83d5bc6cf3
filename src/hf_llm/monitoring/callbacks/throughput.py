"""Add tokens per second, MFU, memory and perplexity to Trainer's logs."""

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
from hf_llm.hardware.peak_flops import PeakFlops, find_peak_flops, measure_peak
from hf_llm.parallel.layout import read_layout

# How often a measured peak is measured again, and for how long: a thousandth of the training's time.
SECONDS_BETWEEN_PEAKS = 60.0
SECONDS_OF_PEAK = 0.06

MAX_EXPONENT = math.log(sys.float_info.max)  # the loss whose perplexity is the largest that a float can hold


class ThroughputCallback(TrainerCallback):
    """Add speed, memory and perplexity to the logs.

    The training logs get `tokens_per_second` and `tokens_seen` (all processes), `mfu` or `mfu_of_measured_peak`, the
    main process's memory (`hf_llm.hardware.memory_counters`), and `perplexity`; the evaluation logs get
    `eval_perplexity` and `eval_bits_per_byte`.

    Tokens: counted without padding in the batches that Trainer fetches. Where completions are sampled only later, the
    trainer counts them in `state.num_input_tokens_seen`, as TRL's do; without either count, no tokens are logged. After
    a resume `tokens_seen` continues from the last entry before the checkpoint, with that entry's mean per step for the
    steps in between.

    Time: from the fetch of the first batch to the log, without evaluation and saving.

    MFU: `mfu` is relative to a data sheet's peak, `mfu_of_measured_peak` to a matrix product timed on this machine.
    Since other programs may run meanwhile, that is timed again every minute, between two steps, and the fastest counts.
    `flops_per_token` are those of forward and backward pass for one token, by sequence length where that changes;
    without it there is no MFU.

    `likelihood` says whether the loss is nats per token, as in pretraining and SFT, but not in DPO. `stage_at` maps a
    step to the stage of a curriculum, logged as `curriculum_stage`.

    Must come before the reporters among the callbacks, which log what it adds (`attach_callbacks` sees to that).
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
        layout = read_layout()
        self._processes_per_batch = layout.processes // layout.data  # how many processes fetch the same batch

        # Counted in this process since the last log.
        self._tokens: int | torch.Tensor = 0
        self._flops: float | torch.Tensor = 0.0  # for these tokens, where FLOPs depend on the sequence length
        self._excluded_seconds = 0.0  # spent in evaluation and saving
        self._window_start: float | None = None  # the moment of the first fetch
        self._pause_start: float | None = None  # the moment when a present evaluation or save began

        # Counted over all processes.
        self._trainer_tokens = 0  # the trainer's own count at the last log
        self._tokens_seen = 0.0  # since the training began
        self._peak: PeakFlops | None = None  # of this process's device
        self._peak_of_all = 0.0  # peak FLOP/s of all processes
        self._peak_measured_at = 0.0  # when this process's peak was last measured
        self._warned_of_mfu = False

        # Trainer shows batches to no callback. `get_batch_samples` is its one public method that sees each batch, so it
        # is replaced on the instance.
        trainer.get_batch_samples = self._count_batches(trainer.get_batch_samples)

    def _count_batches(self, fetch: Callable) -> Callable:
        """Wrap Trainer's method that fetches batches, so that their tokens are counted."""

        @wraps(fetch)
        def get_batch_samples(*args: Any, **kwargs: Any) -> tuple[list, Any]:
            self._start_or_resume_clock()
            batches, items = fetch(*args, **kwargs)
            for batch in batches:
                tokens = count_tokens(batch)
                self._tokens = self._tokens + tokens
                if isinstance(self.flops_per_token, Mapping):
                    length = batch["input_ids"].shape[-1]
                    self._flops = self._flops + tokens * self.flops_per_token[length]
            return batches, items

        return get_batch_samples

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self._tokens = 0
        self._flops = 0.0
        self._excluded_seconds = 0.0
        self._window_start = None
        self._pause_start = None
        self._trainer_tokens = state.num_input_tokens_seen
        self._tokens_seen = estimate_tokens_seen(state)

        self._peak = None
        if self.flops_per_token:
            self._dtype = _compute_dtype(args, model)
            self._peak = find_peak_flops(args.device, self._dtype)
            self._peak_of_all = sum_over_processes(self._peak.flops, args.device)
            self._peak_measured_at = time.perf_counter()
            print_main(f"MFU is measured against {self._peak} ({args.device})")

    def on_step_end(self, args, state, control, **kwargs):
        self._pause_clock(args, control)

    def on_epoch_end(self, args, state, control, **kwargs):
        self._pause_clock(args, control)

    def on_log(self, args, state, control, logs=None, **kwargs):
        values = {}
        if "loss" in logs and self._window_start is not None:
            values |= self._measure_speed(args.device, state.num_input_tokens_seen)
            values |= memory_in_use(args.device)
            if self.stage_at is not None:
                values["curriculum_stage"] = self.stage_at(state.global_step)
        if self.likelihood:
            values |= self._convert_losses(logs)

        logs.update(values)
        state.log_history[-1].update(values)  # Trainer.log has put a copy there already

    def _measure_speed(self, device: torch.device, trainer_tokens: int) -> dict[str, float]:
        """Compute the speed since the last log, and start the next window."""
        now = self._pause_start or time.perf_counter()
        seconds = now - self._window_start - self._excluded_seconds

        # Processes that share a batch have all counted its tokens.
        fetched_tokens = sum_over_processes(float(self._tokens), device) / self._processes_per_batch
        tokens = fetched_tokens or trainer_tokens - self._trainer_tokens
        flops_per_token = self.flops_per_token
        if isinstance(flops_per_token, Mapping):
            flops_per_token = float(self._flops) / float(self._tokens)

        # The next window starts now.
        self._tokens = 0
        self._flops = 0.0
        self._trainer_tokens = trainer_tokens
        self._excluded_seconds = 0.0
        self._window_start = now
        if not tokens:
            return {}

        self._tokens_seen += tokens
        tokens_per_second = tokens / seconds
        values = {"tokens_per_second": round(tokens_per_second, 1), "tokens_seen": round(self._tokens_seen)}
        if self._peak:
            key = "mfu_of_measured_peak" if self._peak.measured else "mfu"
            values[key] = round(self._compute_mfu(tokens_per_second * flops_per_token, device), 4)
        return values

    def _compute_mfu(self, flops_per_second: float, device: torch.device) -> float:
        """Return the share of all processes' peak, after measuring that again where it is due; say where it is above 1.

        All processes call this together.
        """
        if self._peak.measured:
            is_due = time.perf_counter() - self._peak_measured_at > SECONDS_BETWEEN_PEAKS
            if is_due or flops_per_second > self._peak_of_all:
                self._measure_peak_again(device)
            self._peak_of_all = sum_over_processes(self._peak.flops, device)

        mfu = flops_per_second / self._peak_of_all
        if mfu > 1 and not self._warned_of_mfu:
            self._warned_of_mfu = True
            source = "the matrix product measured here" if self._peak.measured else "the data sheet"
            print_main(
                f"MFU of {mfu:.2f}: the training does more operations a second than {source} says is possible. "
                "Other programs took the device while it was measured, or it is another device: read MFU as too high"
            )
        return mfu

    def _measure_peak_again(self, device: torch.device) -> None:
        """Measure this process's peak, and keep the higher one; the time counts to no step."""
        started = time.perf_counter()
        peak = measure_peak(device, self._dtype, SECONDS_OF_PEAK)
        if peak.flops > self._peak.flops:
            if peak.flops > 1.1 * self._peak.flops:
                print_main(f"MFU is now measured against {peak} ({device})")
            self._peak = peak
        self._peak_measured_at = time.perf_counter()
        if self._pause_start is None:  # otherwise all the time up to the next fetch is left out
            self._excluded_seconds += self._peak_measured_at - started

    def _convert_losses(self, logs: dict[str, float]) -> dict[str, float]:
        """Convert the losses in a log entry, nats per token, to perplexity and bits per byte."""
        values = {}
        for key, perplexity_key in (("loss", "perplexity"), ("eval_loss", "eval_perplexity")):
            if logs.get(key, math.inf) < MAX_EXPONENT:
                values[perplexity_key] = math.exp(logs[key])
        if self.bytes_per_token and "eval_loss" in logs:
            values["eval_bits_per_byte"] = logs["eval_loss"] / math.log(2) / self.bytes_per_token
        return values

    def _pause_clock(self, args, control) -> None:
        """Stop the clock before an evaluation or a save."""
        if self._pause_start is None and (control.should_evaluate or control.should_save):
            if args.device.type != "cpu":
                torch.accelerator.synchronize(args.device)  # kernels still in the queue belong to the training
            self._pause_start = time.perf_counter()

    def _start_or_resume_clock(self) -> None:
        now = time.perf_counter()
        if self._window_start is None:
            self._window_start = now
        elif self._pause_start is not None:
            self._excluded_seconds += now - self._pause_start
        self._pause_start = None


def count_tokens(batch: Mapping[str, torch.Tensor] | list) -> int | torch.Tensor:
    """Count the tokens of one micro-batch without padding; 0 for rows that are not tokenized yet.

    Where there is a mask (batch, length), the count is a tensor that stays on the device.
    """
    if not isinstance(batch, Mapping):
        return 0
    mask = batch.get("attention_mask")
    if mask is not None and mask.dim() == 2:
        return mask.sum()
    return sum(batch[name].numel() for name in ("input_ids", "decoder_input_ids") if name in batch)


def estimate_tokens_seen(state) -> float:
    """Estimate `tokens_seen` at the step of a resume, from the last log entry that has it; 0 at the start."""
    for entry in reversed(state.log_history):
        if entry.get("tokens_seen"):
            return entry["tokens_seen"] * state.global_step / entry["step"]
    return 0.0


def _compute_dtype(args, model) -> torch.dtype:
    """Choose the data type whose peak the MFU is relative to."""
    if args.mixed_precision == "fp8":
        return torch.bfloat16  # not 8 bits: so the MFU can be compared with that of other trainings
    if args.bf16:
        return torch.bfloat16
    if args.fp16:
        return torch.float16
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def sum_over_processes(value: float, device: torch.device) -> float:
    """Sum `value` over all processes."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return value
    dtype = torch.float64 if device.type != "mps" else torch.float32  # MPS has no double precision
    total = torch.tensor(value, dtype=dtype, device=device)
    torch.distributed.all_reduce(total)
    return total.item()
