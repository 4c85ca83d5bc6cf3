"""Tokens per second of generation, relative to a plain loop over a preallocated key-value cache.

    OMP_NUM_THREADS=2 python benchmarks/generation.py                     # about five minutes on two idle CPU cores
    OMP_NUM_THREADS=2 python benchmarks/generation.py --sizes 4M --batches 1 --rounds 9
    python benchmarks/generation.py --sizes 4M --nanogpt ../nanoGPT --nanochat ../nanochat --litgpt ../litgpt

The plain loop (`PlainLoop` below) is the bound: the same weights in about sixty lines of PyTorch, without modules,
hooks, stop tokens, options or a library, in `torch.inference_mode`. Everything gets the same prompts of different
lengths, and with greedy decoding has to generate the same tokens. Rounds are interleaved; each figure is the median
over the rounds of the plain loop's seconds by the other's in the same round, so 1.00 is as fast. The ratio of the
processor's seconds is beside it: other programs on the host disturb it less.

`hf_llm` is what `hf_llm.generate`, the samples of a training and the evaluation call, `generate` is transformers'
method on our class, `transformers' loop` is that with the loop of transformers in place of ours, and `PPO` is its
rollout, which also computes log-probabilities and entropies.

`--nanogpt`, `--nanochat` and `--litgpt` are folders of clones of these repositories. Each peer then runs its own loop
with its own model of the same sizes (`peer_models.py`), beside the same plain loop, on prompts of the longest length:
nanoGPT and litgpt take batches of one length only, nanochat one prompt for the whole batch. nanoGPT has no cache, and
decodes greedily by `top_k=1`; nanoGPT and nanochat have no top-p. All are in float32 and not compiled; `litgpt, bf16`
has weights in bf16, the default of `litgpt generate`.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from peer_models import build_litgpt, build_nanochat, build_nanogpt, replace_missing_packages
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast
from transformers.generation.utils import GenerationMixin

from hf_llm.inference.generate import generate_tokens, generation_stop_ids, pad_left, suppressed_ids
from hf_llm.model.configuration_hf_llm import HfLlmConfig
from hf_llm.model.modeling_hf_llm import HfLlmForCausalLM
from hf_llm.posttraining.ppo.rollouts import sample_completions
from hf_llm.training.fault_tolerance.determinism import make_generator

SIZES = {
    "4M": {
        **{"vocab_size": 4096, "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4},
        **{"num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 256},
    },
    "gpt2": {
        **{"vocab_size": 50304, "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12},
        **{"num_attention_heads": 12, "num_key_value_heads": 12, "max_position_embeddings": 1024},
    },
}
DECODING = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "temperature": 0.8, "top_k": 50, "top_p": 0.95},
}
UNUSED_IDS = 8  # at the end of the vocabulary, as a padded one has
LONGEST_PROMPT = 64


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--decoding", nargs="+", choices=list(DECODING), default=list(DECODING))
    parser.add_argument("--tokens", type=int, default=128, help="new tokens of each prompt")
    parser.add_argument("--rounds", type=int, default=7)
    for peer in ("nanogpt", "nanochat", "litgpt"):
        parser.add_argument(f"--{peer}", metavar="FOLDER", help="folder of its repository")
    return parser.parse_args()


class PlainLoop:
    """The bound: prompts to tokens by the weights of a model with the default switches.

    Shapes at line ends: B rows, T tokens, D hidden size, H heads, A size of a head, S tokens so far, V vocabulary.
    """

    def __init__(self, model: HfLlmForCausalLM):
        config = model.config
        self.heads = config.num_attention_heads
        self.head_dim = config.head_dim
        self.eps = config.rms_norm_eps
        self.embedding = model.model.embed_tokens.weight
        self.norm = model.model.norm.weight
        self.layers = model.model.layers
        self.inv_freq = model.model.rotary_emb.inv_freq
        self.weights = []
        for layer in model.model.layers:
            attention = layer.self_attn
            projections = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
            norms = (layer.input_layernorm, attention.q_norm, attention.k_norm, layer.post_attention_layernorm)
            mlp = (layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj)
            self.weights.append([module.weight for module in (*projections, *norms, *mlp)])

    @torch.inference_mode()
    def generate(
        self, prompts: torch.Tensor, mask: torch.Tensor | None, new_tokens: int, choose: Callable
    ) -> torch.Tensor:
        batch, length = prompts.shape
        total = length + new_tokens
        positions = torch.arange(total)[None]  # 1 S
        if mask is not None:
            mask = F.pad(mask.bool(), (0, new_tokens), value=True)  # B S
            positions = (mask.cumsum(1) - 1).clamp(min=0)  # B S
            mask = mask[:, None, None]  # B 1 1 S
        angles = (positions[..., None] * self.inv_freq).repeat(1, 1, 2)[:, None]  # B 1 S A
        cos = angles.cos()
        sin = angles.sin()
        shape = (len(self.weights), batch, self.heads, total, self.head_dim)
        keys = torch.empty(shape)
        values = torch.empty(shape)

        tokens = torch.empty(batch, total, dtype=torch.long)
        tokens[:, :length] = prompts
        start = 0
        for end in range(length, total):
            step_mask = None
            if mask is not None:
                step_mask = mask[..., :end]
                if start == 0:
                    step_mask = step_mask & torch.ones(end, end, dtype=torch.bool).tril()
            logits = self.step(tokens[:, start:end], keys, values, start, end, cos, sin, step_mask)
            tokens[:, end] = choose(logits)
            start = end
        return tokens[:, length:]

    def step(self, tokens, keys, values, start, end, cos, sin, mask) -> torch.Tensor:
        batch, length = tokens.shape
        cos = cos[:, :, start:end]
        sin = sin[:, :, start:end]
        by_head = (batch, length, self.heads, self.head_dim)
        is_causal = length > 1 and mask is None
        x = F.embedding(tokens, self.embedding)  # B T D
        size = x.shape[-1:]
        for layer, weights in enumerate(self.weights):
            to_query, to_key, to_value, to_out, norm, query_norm, key_norm, mlp_norm, gate, up, down = weights
            h = F.rms_norm(x, size, norm, self.eps)
            query = F.rms_norm(F.linear(h, to_query).view(by_head), (self.head_dim,), query_norm, self.eps)
            key = F.rms_norm(F.linear(h, to_key).view(by_head), (self.head_dim,), key_norm, self.eps)
            value = F.linear(h, to_value).view(by_head)
            keys[layer, :, :, start:end] = rotate(key.transpose(1, 2), cos, sin)
            values[layer, :, :, start:end] = value.transpose(1, 2)
            attended = F.scaled_dot_product_attention(
                rotate(query.transpose(1, 2), cos, sin),
                keys[layer, :, :, :end],
                values[layer, :, :, :end],
                attn_mask=mask,
                is_causal=is_causal,
            )  # B H T A
            x = x + F.linear(attended.transpose(1, 2).flatten(2), to_out)
            h = F.rms_norm(x, size, mlp_norm, self.eps)
            x = x + F.linear(F.silu(F.linear(h, gate)) * F.linear(h, up), down)
        return F.linear(F.rms_norm(x[:, -1], size, self.norm, self.eps), self.embedding)  # B V


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def choose_greedily(logits: torch.Tensor) -> torch.Tensor:
    return logits.argmax(-1)


def choose_by_sampling(logits: torch.Tensor) -> torch.Tensor:
    """Temperature, then top-k, then top-p, as transformers defines them."""
    sampling = DECODING["sampling"]
    logits = logits / sampling["temperature"]
    least = torch.topk(logits, sampling["top_k"]).values[:, -1:]
    logits = logits.masked_fill(logits < least, -torch.inf)
    in_order, order = torch.sort(logits)
    is_tail = in_order.softmax(-1).cumsum(-1) <= 1 - sampling["top_p"]
    is_tail[:, -1] = False
    logits = logits.masked_fill(is_tail.scatter(1, order, is_tail), -torch.inf)
    return torch.multinomial(logits.softmax(-1), 1)[:, 0]


CHOICES = {"greedy": choose_greedily, "sampling": choose_by_sampling}


def make_model(sizes: dict[str, int]) -> HfLlmForCausalLM:
    """A model whose end of text and unused ids are the last of its vocabulary, and never likely."""
    torch.manual_seed(0)
    model = HfLlmForCausalLM(HfLlmConfig(**sizes, initializer_range=0.05)).eval()
    model.set_attn_implementation("sdpa")
    with torch.no_grad():
        model.model.embed_tokens.weight[-UNUSED_IDS - 2 :] = 0
    return model


def make_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """A word for every token."""
    words = {f"w{number}": number for number in range(vocab_size - UNUSED_IDS - 2)}
    words |= {"<pad>": len(words), "<eos>": len(words) + 1}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def make_ways(
    model: HfLlmForCausalLM, prompts: list[list[int]], new_tokens: int, decoding: str
) -> dict[str, Callable[[], Any]]:
    """Return what is timed, by name; each returns B rows of new tokens, or nothing to compare."""
    tokenizer = make_tokenizer(model.config.vocab_size)
    batch = pad_left(model, tokenizer, prompts)
    mask = batch["attention_mask"]
    if mask.all():
        mask = None
    plain = PlainLoop(model)
    settings = DECODING[decoding]
    arguments = {
        **batch,
        "max_new_tokens": new_tokens,
        "eos_token_id": generation_stop_ids(model, tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "suppress_tokens": suppressed_ids(model, tokenizer),
        **settings,
    }
    length = batch["input_ids"].shape[1]

    def run_ppo() -> None:
        stops = generation_stop_ids(model, tokenizer)
        generator = make_generator(model.device, 0)
        suppressed = suppressed_ids(model, tokenizer)
        sample_completions(model, prompts, new_tokens, 1.0, stops, tokenizer.pad_token_id, generator, suppressed)

    ways: dict[str, Callable[[], Any]] = {
        "plain loop": lambda: plain.generate(batch["input_ids"], mask, new_tokens, CHOICES[decoding]),
        "hf_llm": lambda: torch.tensor(generate_tokens(model, tokenizer, prompts, new_tokens, **settings)),
        "generate": lambda: model.generate(**arguments)[:, length:],
        "transformers' loop": lambda: model.generate(**arguments, custom_generate=GenerationMixin._sample)[:, length:],
    }
    if decoding == "sampling":
        ways["PPO"] = run_ppo
    return ways


class NoSpecialTokens:
    """In place of nanochat's tokenizer: ids that no model generates, so that no row ends early."""

    def encode_special(self, token: str) -> int:
        return -1

    def get_bos_token_id(self) -> int:
        return -1


def build_peers(options: argparse.Namespace, sizes: dict[str, int]) -> dict[str, nn.Module]:
    """Build the models of the peers whose folders are given."""
    models = {}
    if options.nanogpt:
        models["nanoGPT"] = build_nanogpt(options.nanogpt, sizes)
    if options.nanochat:
        models["nanochat"] = build_nanochat(options.nanochat, sizes)
    if options.litgpt:
        models["litgpt"] = build_litgpt(options.litgpt, sizes)
        models["litgpt, bf16"] = copy.deepcopy(models["litgpt"]).bfloat16()
    return {name: model.eval() for name, model in models.items()}


def make_peer_ways(
    peers: dict[str, nn.Module], prompt: list[int], batch: int, new_tokens: int, decoding: str
) -> dict[str, Callable[[], None]]:
    """Return each peer's own loop, by name."""
    settings = DECODING[decoding]
    is_greedy = not settings["do_sample"]
    temperature = settings.get("temperature", 0.0)
    top_k = settings.get("top_k")
    prompts = torch.tensor(prompt).repeat(batch, 1)

    def run_nanogpt(model: nn.Module) -> None:
        if is_greedy:
            model.generate(prompts, new_tokens, top_k=1)
        else:
            model.generate(prompts, new_tokens, temperature, top_k)

    def run_nanochat(model: nn.Module) -> None:
        from nanochat.engine import Engine

        engine = Engine(model, NoSpecialTokens())
        results, _ = engine.generate_batch(prompt, batch, max_tokens=new_tokens, temperature=temperature, top_k=top_k)
        assert len(results[0]) == len(prompt) + new_tokens

    def run_litgpt(model: nn.Module) -> None:
        from litgpt.generate.base import batched_generate_fn, generate

        total = len(prompt) + new_tokens
        model.max_seq_length = total
        model.set_kv_cache(batch_size=batch, dtype=model.lm_head.weight.dtype)
        sampling = {"temperature": temperature, "top_k": top_k, "top_p": settings.get("top_p", 1.0)}
        if batch == 1:
            tokens = generate(model, prompts[0], total, **sampling)
            assert len(tokens) == total
        else:
            rows = batched_generate_fn(
                model, prompts, total, sample_args=sampling, include_prompt=False, include_eos=True
            )
            assert len(list(rows)) == new_tokens

    run = {"nanoGPT": run_nanogpt, "nanochat": run_nanochat, "litgpt": run_litgpt, "litgpt, bf16": run_litgpt}
    return {name: partial(run[name], model) for name, model in peers.items()}


@dataclass
class Timing:
    """Seconds of each round: by the clock, and of the processor."""

    elapsed: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)


def compare(ways: dict[str, Callable[[], Any]], rounds: int, is_greedy: bool) -> dict[str, Timing]:
    """Time each way in each round, after one round that is not timed."""
    timings = {name: Timing() for name in ways}
    expected = None
    for round_number in range(rounds + 1):
        for name, run in ways.items():
            torch.manual_seed(round_number)
            start = time.perf_counter()
            processor_start = time.process_time()
            tokens = run()
            processor = time.process_time() - processor_start
            elapsed = time.perf_counter() - start
            if round_number:
                timings[name].elapsed.append(elapsed)
                timings[name].processor.append(processor)
            elif is_greedy and tokens is not None:
                expected = tokens if expected is None else expected
                agreeing = (tokens == expected).float().mean().item()
                if agreeing < 1:
                    print(f"    {name}: {agreeing:.1%} of its tokens are those of the plain loop")
    return timings


def median_ratio(bound: list[float], other: list[float]) -> float:
    return statistics.median(plain / seconds for plain, seconds in zip(bound, other, strict=True))


def main() -> None:
    options = parse()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.tokens} new tokens")
    if options.nanochat or options.litgpt:
        replace_missing_packages()
    for size in options.sizes:
        model = make_model(SIZES[size])
        peers = build_peers(options, SIZES[size])
        for batch in options.batches:
            draw = torch.Generator().manual_seed(1)
            lengths = [max(4, LONGEST_PROMPT * (row + 1) // batch) for row in range(batch)]
            words = model.config.vocab_size - UNUSED_IDS - 2
            prompts = [torch.randint(words, (length,), generator=draw).tolist() for length in lengths]
            for decoding in options.decoding:
                ways = make_ways(model, prompts, options.tokens, decoding)
                ways |= make_peer_ways(peers, prompts[-1], batch, options.tokens, decoding)
                timings = compare(ways, options.rounds, decoding == "greedy")
                bound = timings.pop("plain loop")
                speed = batch * options.tokens / min(bound.elapsed)
                print(f"{size}, batch {batch}, {decoding}: the plain loop's best {speed:,.0f} tokens/s")
                for name, timing in timings.items():
                    elapsed = median_ratio(bound.elapsed, timing.elapsed)
                    processor = median_ratio(bound.processor, timing.processor)
                    print(f"    {name:20} {elapsed:.2f}   (processor time {processor:.2f})", flush=True)


if __name__ == "__main__":
    main()
