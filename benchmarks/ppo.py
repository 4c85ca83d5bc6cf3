"""Reward reached and answer tokens per second of our PPO against that of TRL 1.12.0, the last release that had one.

    python benchmarks/ppo.py                    # three seeds, each way in turn, a process each
    python benchmarks/ppo.py --environment /somewhere    # keep TRL's environment for another time

TRL 1.12.0 is installed by pip, without its dependencies, into an environment of its own that sees this one's other
packages. Same stock Llama, same critic, same prompts, reward and hyperparameters; the reward is the share of an
answer's possible tokens that are of a certain eighth of the vocabulary, so the best is 1. `ours, value head` is what
our trainer can do besides: values from the policy's own hidden states, half as much to train.
"""

import argparse
import json
import os
import site
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

WAYS = ("trl", "ours", "ours, value head")
LIMIT, BATCH, MINI_BATCHES, EPOCHS = 32, 64, 4, 4
SHARED = {"gamma": 1.0, "lam": 0.95, "cliprange": 0.2, "cliprange_value": 0.2, "vf_coef": 0.1, "kl_coef": 0.01}
SHARED |= {"num_ppo_epochs": EPOCHS, "num_mini_batches": MINI_BATCHES, "temperature": 1.0, "report_to": "none"}
SHARED |= {"lr_scheduler_type": "constant", "use_cpu": True, "disable_tqdm": True, "save_strategy": "no"}
TEMPLATE = (
    "{% for message in messages %}<|im_start|> {{ message['role'] }} {{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{% generation %} <|im_end|>{% endgeneration %}{% else %} <|im_end|>"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|> assistant{% endif %}"
)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rollouts", type=int, default=60, help=f"of {BATCH} answers each")
    parser.add_argument("--hidden-size", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--vocab-size", type=int, default=1024)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of torch (all cores)")
    parser.add_argument("--environment", type=Path, help="where TRL 1.12.0 is, or is to be, installed")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def tokenizer_of(size: int):
    """A word for every token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<|pad|>", "<|im_start|>", "<|im_end|>", "<|unknown|>", "user", "assistant"]
    words += [f"w{number}" for number in range(size - len(words))]
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<|unknown|>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.add_special_tokens(["<|pad|>", "<|im_start|>", "<|im_end|>", "<|unknown|>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<|pad|>", eos_token="<|im_end|>")
    tokenizer.padding_side, tokenizer.chat_template = "left", TEMPLATE
    return tokenizer


def models_of(options: argparse.Namespace, tokenizer):
    """Policy and critic, new from the seed."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    torch.manual_seed(options.seed)
    config = LlamaConfig(
        vocab_size=options.vocab_size,
        hidden_size=options.hidden_size,
        intermediate_size=options.hidden_size * 11 // 4,
        num_hidden_layers=options.layers,
        num_attention_heads=options.hidden_size // 32,
        max_position_embeddings=256,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        num_labels=1,
    )
    return LlamaForCausalLM(config), LlamaForSequenceClassification(config)


def prompts_of(options: argparse.Namespace) -> list[list[dict]]:
    """512 questions of 8 to 24 words, none of them of the wanted eighth."""
    import random

    rng, wanted = random.Random(0), first_wanted(options.vocab_size)
    texts = [" ".join(f"w{rng.randrange(wanted - 6)}" for _ in range(rng.randint(8, 24))) for _ in range(512)]
    return [[{"role": "user", "content": text}] for text in texts]


def first_wanted(vocab_size: int) -> int:
    """The wanted tokens are those from this one on."""
    return vocab_size - vocab_size // 8


def ours(options: argparse.Namespace) -> dict[str, float]:
    """Train with our trainer: mean reward of the last rollouts, answer tokens and seconds."""
    from datasets import Dataset

    from hf_llm.hardware.runtime import keep_freed_memory
    from hf_llm.posttraining.ppo.trainer import PPOConfig, PPOTrainer

    keep_freed_memory()
    tokenizer, wanted, made = tokenizer_of(options.vocab_size), first_wanted(options.vocab_size), []
    policy, critic = models_of(options, tokenizer)

    def share_wanted(completion_ids: list[list[int]], **columns) -> list[float]:
        made.append(sum(map(len, completion_ids)))
        return [sum(token >= wanted for token in ids) / LIMIT for ids in completion_ids]

    with tempfile.TemporaryDirectory() as folder:
        arguments = PPOConfig(
            output_dir=folder,
            seed=options.seed,
            per_device_train_batch_size=BATCH // MINI_BATCHES,
            per_device_eval_batch_size=BATCH,
            learning_rate=options.learning_rate,
            max_steps=options.rollouts * EPOCHS * MINI_BATCHES,
            logging_steps=EPOCHS * MINI_BATCHES,
            max_completion_length=LIMIT,
            max_grad_norm=0.0,  # TRL's PPO does not clip gradients
            eval_on_start=False,
            dataloader_pin_memory=False,
            **SHARED,
        )
        rows = Dataset.from_dict({"prompt": prompts_of(options)})
        critic = critic if options.way == "ours" else None
        trainer = PPOTrainer(policy, arguments, rows, rows, tokenizer, [share_wanted], critic=critic)
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    return {"reward": statistics.mean(rewards[-5:]), "tokens": sum(made), "seconds": seconds}


def trl(options: argparse.Namespace) -> dict[str, float]:
    """The same with TRL 1.12.0."""
    import torch
    from datasets import Dataset
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    tokenizer, wanted, made = tokenizer_of(options.vocab_size), first_wanted(options.vocab_size), []
    policy, critic = models_of(options, tokenizer)
    reference, _ = models_of(options, tokenizer)

    class Wanted(torch.nn.Module):
        """How many wanted tokens have been read at each place, in the form TRL asks of a reward model."""

        base_model_prefix = "backbone"

        def __init__(self):
            super().__init__()
            self.backbone, self.score = self.count, torch.nn.Identity()

        def count(self, input_ids: torch.Tensor, **others):
            counted = (input_ids >= wanted).cumsum(1)[..., None] / LIMIT
            return argparse.Namespace(hidden_states=[counted])

    scored = ppo_trainer.get_reward

    def counted(model, texts, pad, context):
        if isinstance(model, Wanted):
            made.append(int((texts[:, context:] != pad).sum()))
        return scored(model, texts, pad, context)

    ppo_trainer.get_reward = counted
    with tempfile.TemporaryDirectory() as folder:
        arguments = PPOConfig(
            output_dir=folder,
            seed=options.seed,
            per_device_train_batch_size=BATCH,
            local_rollout_forward_batch_size=BATCH,
            learning_rate=options.learning_rate,
            total_episodes=options.rollouts * BATCH,
            response_length=LIMIT,
            stop_token="eos",
            num_sample_generations=0,
            logging_steps=1,
            **SHARED,
        )
        ids = [
            tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
            for prompt in prompts_of(options)
        ]
        rows = Dataset.from_dict({"input_ids": ids})
        trainer = PPOTrainer(arguments, tokenizer, policy, reference, Wanted(), rows, critic, eval_dataset=rows)
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
    rewards = [entry["objective/scores"] for entry in trainer.state.log_history if "objective/scores" in entry]
    return {"reward": statistics.mean(rewards[-5:]), "tokens": sum(made), "seconds": seconds}


def environment_of(folder: Path) -> Path:
    """The Python of an environment with TRL 1.12.0 and this one's other packages; made where it is not there yet."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        (own,) = folder.glob("lib/python*/site-packages")
        (own / "base.pth").write_text("\n".join(site.getsitepackages()))  # behind its own packages
        subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", "trl==1.12.0"], check=True)
    return python


def main() -> None:
    options = parse()
    if options.way:
        import torch

        torch.set_num_threads(options.threads)
        print("RESULT", json.dumps((trl if options.way == "trl" else ours)(options)))
        return
    found = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as temporary:
        other = environment_of(options.environment or Path(temporary) / "trl")
        for seed in range(options.seeds):
            for way in WAYS:
                python = other if way == "trl" else sys.executable
                command = [python, __file__, *sys.argv[1:], f"--way={way}", f"--seed={seed}"]
                environment = {**os.environ, "TRL_EXPERIMENTAL_SILENCE": "1"}
                done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
                if done.returncode:
                    sys.exit(done.stderr)
                line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT"))
                found[way].append(json.loads(line.removeprefix("RESULT ")))
                print(f"seed {seed}, {way}: {found[way][-1]}", file=sys.stderr, flush=True)
    print("| way | reward of the last five rollouts, by seed | answer tokens/s, median | to TRL's |\n|--|--|--:|--:|")
    for way, rounds in found.items():
        rewards = ", ".join(f"{one['reward']:.3f}" for one in rounds)
        rates = [one["tokens"] / one["seconds"] for one in rounds]
        theirs = [one["tokens"] / one["seconds"] for one in found["trl"]]
        ratio = statistics.median(own / other for own, other in zip(rates, theirs, strict=True))
        print(f"| {way} | {rewards} | {statistics.median(rates):,.0f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
