"""Measure what a model costs to run here: the time of a token at batch 1, and memory."""

import statistics
import time
from typing import Any

import torch

from hf_llm.evaluation.evaluated_model import EvaluatedModel
from hf_llm.hardware.memory_counters import memory_in_use
from hf_llm.inference.generate import generate_tokens

PROMPT_TOKENS = 16
NEW_TOKENS = 32
ROUNDS = 3


def measure_speed(evaluated: EvaluatedModel) -> dict[str, Any]:
    """Return `ms_per_token`, the median of ROUNDS generations of one sequence, and `memory_gib`, the peak memory of
    this process, or of the GPU where there is one.

    A figure of this machine and what else it does: on another one it is another.
    """
    model = evaluated.model
    new_tokens = min(NEW_TOKENS, evaluated.context // 2)
    prompt = [index % model.config.get_text_config().vocab_size for index in range(min(PROMPT_TOKENS, new_tokens))]
    seconds = []
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        generate_tokens(model, evaluated.tokenizer, [prompt], new_tokens, do_sample=False, min_new_tokens=new_tokens)
        if model.device.type != "cpu":
            torch.accelerator.synchronize()
        seconds.append(time.perf_counter() - start)
    memory = memory_in_use(model.device)
    milliseconds = statistics.median(seconds[1:]) / new_tokens * 1000  # the first round allocates
    return {"ms_per_token": round(milliseconds, 3), "memory_gib": memory["memory_gib"]}
