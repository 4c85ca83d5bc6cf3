"""The share of the best matrix product that a training step reaches on a CPU: the dial's `hours` reckon with it.

    python benchmarks/utilisation.py

Processor seconds of one thread, so that other programs disturb little.
"""

import time

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

from hf_llm.model.configuration_hf_llm import HfLlmConfig
from hf_llm.model.loading import new_model  # noqa: F401 - makes hf_llm known to AutoModelForCausalLM
from hf_llm.model.printout import flops_per_token
from hf_llm.planning.dial import turn
from hf_llm.planning.rates import fastest, square
from hf_llm.training.device import keep_freed_memory

CPU = torch.device("cpu")
TOKENS = 2048
QUICKSTART = {"vocab_size": 4096, "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4,
              "num_attention_heads": 4, "max_position_embeddings": 256}  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    best = max(map(product_rate, (256, 512, 1024, 2048)))
    print(f"best product {best / 1e9:.0f} GFLOP/s")
    tree, _ = turn({"depth": 2})
    dialled = {**tree["model"], "vocab_size": tree["tokenizer"]["vocab_size"]}
    for name, sizes in (("depth 2", dialled), ("quickstart", QUICKSTART)):
        print(f"{name:<12} {step_rate(HfLlmConfig(**sizes)) / best:.2f}")


def product_rate(side: int) -> float:
    """FLOP/s of a product of two square matrices."""
    left = square(side, CPU, torch.float32)
    return 2 * side**3 / seconds(lambda: left @ left, 1.5)


def step_rate(config: PreTrainedConfig) -> float:
    """FLOP/s of forward, backward and optimizer step."""
    context = config.max_position_embeddings
    model = AutoModelForCausalLM.from_config(config)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    ids = torch.randint(0, config.vocab_size, (TOKENS // context, context))

    def step() -> None:
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return TOKENS * flops_per_token(model, context) / seconds(step, 10)


def seconds(work, budget: float) -> float:
    return fastest(work, CPU, budget, time.process_time)


if __name__ == "__main__":
    main()
