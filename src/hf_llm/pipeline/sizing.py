"""One dial for a whole pretraining: `depth: 12`, `params: 125M`, `flops: 1e18` or `hours: 2` at the top of a recipe.

From it follow the model's shape, vocabulary, tokens, batch, learning rate and the rest, by published rules; what the
recipe says itself stays, and what follows from it is worked out with that. docs/sizing.md shows the rules side by side.
"""

import math
import re
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

from hf_llm.core.errors import UserError

SIZING_KEYS = ("depth", "params", "flops", "hours")

CHINCHILLA = "Chinchilla, https://arxiv.org/abs/2203.15556"
TOKENS_PER_PARAMETER = 20  # Chinchilla's table 3
ASPECT = 64  # width / layers; nanochat's, and about that of GPT-2 and Qwen3's small models
# What training keeps of a data sheet's FLOP/s: Llama 3 on H100s 0.38 to 0.43 (https://arxiv.org/abs/2407.21783)
OF_DATA_SHEET = 0.4
MOST_LAYERS = 128
SMALLEST_VOCABULARY = 2048
STEP_LAW = "Step Law, https://arxiv.org/abs/2503.04715"
HIGHEST_LEARNING_RATE = 2**-7  # the highest that the runs behind Step Law tried
SUFFIXES = {"": 1, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}


@dataclass(frozen=True)
class Shape:
    """The sizes of an `hf_llm` model with as many key/value heads as heads, unless `key_value_heads` says otherwise."""

    layers: int
    width: int
    heads: int
    head_dim: int
    key_value_heads: int
    intermediate: int
    vocabulary: int
    tied: bool = True

    @property
    def inner(self) -> int:
        """Parameters without embeddings and head."""
        attention = 2 * self.width * self.head_dim * (self.heads + self.key_value_heads) + 2 * self.head_dim
        return self.layers * (attention + 3 * self.width * self.intermediate + 2 * self.width) + self.width

    @property
    def parameters(self) -> int:
        """All parameters, tied embeddings counted once."""
        return self.inner + self.vocabulary * self.width * (1 if self.tied else 2)

    def flops_per_token(self, context: int) -> int:
        """Forward and backward, as `hf_llm.model.summary.flops_per_token` counts them for a built model."""
        multiplying = self.inner + self.vocabulary * self.width
        return 6 * multiplying + 12 * self.layers * self.heads * self.head_dim * context


def apply_sizing(tree: dict[str, Any], hours: float | None = None) -> tuple[dict[str, Any], dict[str, str]]:
    """A recipe's tree with all that its dial derives filled in, and why: `{"model.hidden_size": "64 for each ..."}`.

    With `hours` the tokens are those that `machine` trains on in that time, whatever the size. A tree without a dial
    comes back as it is. Raises UserError for two dials at once and for values that are none.
    """
    dials = [key for key in SIZING_KEYS if tree.get(key) is not None]
    if len(dials) > 1:
        raise UserError(f"{' and '.join(dials)}: one dial at a time; take out all but one (--{dials[0]}=null)")
    if not dials:
        if tree.get("machine") is not None:
            raise UserError(f"machine: is read with one of {', '.join(SIZING_KEYS)}; add one, or take it out")
        return tree, {}
    return Derivation(tree, dials[0], hours).result()


def shape_of(tree: dict[str, Any]) -> Shape:
    """The shape of a recipe's tree after `apply_sizing`."""
    model, tokenizer = tree["model"], tree["tokenizer"]
    width, heads = model["hidden_size"], model["num_attention_heads"]
    return Shape(
        layers=model["num_hidden_layers"],
        width=width,
        heads=heads,
        head_dim=model.get("head_dim") or width // heads,
        key_value_heads=model.get("num_key_value_heads") or heads,
        intermediate=model["intermediate_size"],
        vocabulary=model.get("vocab_size") or -(-tokenizer["vocab_size"] // 64) * 64,
        tied=model.get("tie_word_embeddings") is not False,
    )


class Derivation:
    """One turn of the dial: works out value after value, each from what is written or was derived before it."""

    def __init__(self, tree: dict[str, Any], dial: str, hours: float | None = None):
        self.tree = deepcopy(tree)
        for section in ("tokenizer", "model", "pretrain"):
            self._section(section)
        self._section("pretrain.training")
        self.dial = dial
        self.amount = parse_quantity(tree[dial], dial)
        self.hours = self.amount if dial == "hours" else hours
        self.reasons: dict[str, str] = {}
        self._check()

    def result(self) -> tuple[dict[str, Any], dict[str, str]]:
        """The filled tree and the reasons, in the order of a recipe."""
        self.devices, self.rate, self.source = self._machine()
        shape, why = self._shape()
        self._fill_shape(shape, why)
        context = self._fill_context(shape)
        tokens = self._tokens(shape, context)
        step = self._fill_step(tokens, context)
        tokens = self._fill_steps(shape, tokens, step, context)
        self._fill_optimizer(shape, tokens)
        return self.tree, self.reasons

    def written(self, *keys: str) -> Any:
        """The first of `keys` that has a value; None where none has (`auto` is no value)."""
        for key in keys:
            section, _, name = key.rpartition(".")
            value = self._section(section).get(name)
            if value is not None and value != "auto":
                return value
        return None

    def fill(self, key: str, value: Any, reason: str) -> Any:
        """Enter a derived value where the recipe has none. Returns the value that holds."""
        there = self.written(key)
        if there is not None:
            return there
        section, _, name = key.rpartition(".")
        self._section(section)[name] = value
        self.reasons[key] = reason
        return value

    def whole(self, *keys: str) -> int | None:
        """A positive whole number that the recipe writes under one of `keys`."""
        value = self.written(*keys)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise UserError(f"{' or '.join(keys)}: {value!r} does not fit; a positive whole number is wanted")
        return value

    def _section(self, path: str) -> dict[str, Any]:
        section = self.tree
        for name in path.split("."):
            if section.get(name) is None:
                section[name] = {}
            section = section[name]
            if not isinstance(section, dict):
                raise UserError(f"{path}: {section!r} does not fit; this section holds keys")
        return section

    def _check(self) -> None:
        kind = self.written("model.model_type") or "hf_llm"
        if kind != "hf_llm":
            raise UserError(
                f"{self.dial}: the dial shapes hf_llm models, and model.model_type is {kind!r}; take the dial out and "
                "write the sizes, or take model_type out"
            )
        if self.written("tokenizer.use") and not self.written("model.vocab_size"):
            raise UserError(
                f"{self.dial}: the dial has to know the vocabulary of tokenizer.use; add model.vocab_size, the "
                "tokenizer's number of tokens rounded up to a multiple of 64"
            )
        if self.dial == "depth" and (self.amount != int(self.amount) or self.amount > MOST_LAYERS):
            raise UserError(f"depth: {self.tree['depth']!r} does not fit; a number of layers from 1 to {MOST_LAYERS}")
        if self.hours and self.tree.get("machine") is None:
            raise UserError(
                "hours: needs `machine:` beside it, so that the recipe means the same everywhere: 1xrtx4090, or the "
                "FLOP/s at which this machine trains; `python -m hf_llm.doctor` prints the line to add"
            )

    def _machine(self) -> tuple[int, float, str]:
        """Devices, the FLOP/s that training is reckoned to reach on all together, and where those are from."""
        machine = self.tree.get("machine")
        if machine is None:
            return 1, 0.0, ""
        if re.fullmatch(r"[\d._]+(e\+?\d+)?", str(machine), re.IGNORECASE):
            return 1, parse_quantity(machine, "machine"), "measured"
        from hf_llm.hardware.devices import parse_machine, training_dtype

        count, device = parse_machine(str(machine))
        dtype = training_dtype(device)
        if dtype is None:
            raise UserError(
                f"machine: {device.name}'s maker publishes no FLOP/s; write what training reaches instead, which "
                "`python -m hf_llm.doctor` measures there"
            )
        return count, OF_DATA_SHEET * count * device.flops[dtype], f"{OF_DATA_SHEET:.0%} of {machine}"

    def _shape(self) -> tuple[Shape, str]:
        """The model's sizes, and what they were chosen for."""
        if self.dial == "depth":
            depth = int(self.amount)
            return self._sized(
                self.whole("model.num_hidden_layers") or depth, in_heads(ASPECT * depth)
            ), f"depth {depth}"
        if self.dial == "params":
            return self._nearest(self.amount), f"{short(self.amount)} parameters"
        budget = self._budget()
        # 6 x parameters x tokens, then once more with the arithmetic that shape really has (attention comes on top).
        shape = self._nearest(math.sqrt(budget / 6 / TOKENS_PER_PARAMETER))
        per_token = shape.flops_per_token(self._context(shape))
        wanted = math.sqrt(budget * shape.parameters / per_token / TOKENS_PER_PARAMETER)
        return self._nearest(
            wanted
        ), f"the best use of {budget:.2g} FLOPs (parameters = tokens / {TOKENS_PER_PARAMETER})"

    def _budget(self) -> float:
        if self.dial == "flops":
            return self.amount
        return self.hours * 3600 * self.rate

    def _nearest(self, wanted: float) -> Shape:
        """The shape nearest to an aspect ratio of 64 among those within 2% of `wanted` parameters; else the nearest."""

        def cost(shape: Shape) -> tuple[float, float]:
            off = abs(math.log(shape.parameters / wanted))
            return max(off, 0.02), abs(math.log(shape.width / shape.layers / ASPECT))

        best = min(self._shapes(wanted), key=cost)
        if self.dial != "params":
            return best  # the budget is met by the tokens
        best = self._trimmed(best, wanted)
        if abs(best.parameters / wanted - 1) > 0.05:
            raise UserError(
                f"params: no shape that the recipe leaves open has about {short(wanted)} parameters; "
                f"{short(best.parameters)} is the nearest"
            )
        return best

    def _trimmed(self, shape: Shape, wanted: float) -> Shape:
        """The shape with the intermediate size that comes nearest to `wanted`, from twice to four times the width."""
        if self.whole("model.intermediate_size") or abs(shape.parameters / wanted - 1) < 0.02:
            return shape
        more = (wanted - shape.parameters) / (3 * shape.width * shape.layers)
        size = round((shape.intermediate + more) / 64) * 64
        return replace(shape, intermediate=max(2 * shape.width, min(4 * shape.width, size)))

    def _shapes(self, wanted: float) -> Iterator[Shape]:
        """Every shape with an aspect ratio from 32 to 128 that is not much too large."""
        layers, width = self.whole("model.num_hidden_layers"), self.whole("model.hidden_size")
        for depth in [layers] if layers else range(2, MOST_LAYERS + 1):
            for each in [width] if width else dict.fromkeys(map(in_heads, range(32 * depth, 128 * depth + 1, 64))):
                shape = self._sized(depth, each)
                yield shape
                if shape.parameters > 2 * wanted:
                    break

    def _sized(self, layers: int, width: int) -> Shape:
        width = self.whole("model.hidden_size") or width
        head_dim = self.whole("model.head_dim")
        heads = self.whole("model.num_attention_heads") or (max(1, width // head_dim) if head_dim else heads_of(width))
        shape = Shape(
            layers,
            width,
            heads,
            head_dim or width // heads,
            self.whole("model.num_key_value_heads") or heads,
            self.whole("model.intermediate_size") or intermediate_of(width),
            0,
            self.written("model.tie_word_embeddings") is not False,
        )
        vocabulary = self.whole("model.vocab_size", "tokenizer.vocab_size") or vocabulary_of(shape.inner, width)
        return replace(shape, vocabulary=-(-vocabulary // 64) * 64)

    def _fill_shape(self, shape: Shape, why: str) -> None:
        if not self.written("tokenizer.use"):
            self.fill(
                "tokenizer.vocab_size",
                shape.vocabulary,
                f"its parameters grow as the other {short(shape.inner)} to the power of 0.835 "
                "(https://arxiv.org/abs/2407.13623, approach 2), at least 2,048",
            )
        ratio = f"width / layers {shape.width / shape.layers:.0f}, near {ASPECT} as nanochat's"
        self.fill("model.num_hidden_layers", shape.layers, why)
        self.fill("model.hidden_size", shape.width, f"{ratio}; {short(shape.parameters)} parameters in all")
        self.fill("model.num_attention_heads", shape.heads, "of 64 numbers each, from width 2,048 on of 128")
        ratio = "8/3 of the width, as SwiGLU's three matrices want (https://arxiv.org/abs/2002.05202), in steps of 64"
        if shape.intermediate != intermediate_of(shape.width):
            ratio += f", then {shape.intermediate / shape.width:.2f} of it to come nearer to the parameters asked for"
        self.fill("model.intermediate_size", shape.intermediate, ratio)

    def _tokens(self, shape: Shape, context: int) -> float:
        if self.dial in ("depth", "params") and not self.hours:
            return TOKENS_PER_PARAMETER * shape.parameters
        return self._budget() / shape.flops_per_token(context)

    def _fill_context(self, shape: Shape) -> int:
        context = self._context(shape)
        if not self.written("pretrain.context"):
            reason = "a power of two, at most twice the width (attention is a third of the rest then) and 1/8 of a step"
            self.fill("model.max_position_embeddings", context, f"{reason}, from 256 to 2,048")
        return context

    def _context(self, shape: Shape) -> int:
        written = self.whole("pretrain.context", "model.max_position_embeddings")
        step = batch_of(self._tokens(shape, written or 256))
        return written or min(2048, max(256, 2 ** int(math.log2(min(2 * shape.width, max(step / 8, 1))))))

    def _fill_step(self, tokens: float, context: int) -> int:
        best, unit = batch_of(tokens), context * self.devices
        value = unit * 2 ** max(0, round(math.log2(best / unit)))
        reason = f"near {best:,.0f} = 0.58 tokens^0.571 ({STEP_LAW}), in windows for each device"
        self.fill("pretrain.tokens_per_step", value, reason)
        return self.whole("pretrain.tokens_per_step")

    def _fill_steps(self, shape: Shape, tokens: float, step: int, context: int) -> float:
        """Enter steps, warm-up and evaluations. Returns the tokens that the steps come to."""
        training = "pretrain.training."
        warmup = "a twentieth of the run, at most the 2,000 steps of the runs behind Step Law"
        if self.written(training + "num_train_epochs") and not self.written(training + "max_steps"):
            self.fill(training + "warmup_steps", 0.05, warmup)
            return tokens
        steps = self.fill(training + "max_steps", max(1, round(tokens / step)), self._why_steps(shape, tokens, context))
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            return tokens  # the recipe's own value does not fit; the stage says so
        self.fill(training + "warmup_steps", min(2000, max(1, round(steps / 20))), warmup)
        often = min(500, max(1, round(steps / 10)))
        self.fill(training + "eval_steps", often, "ten times in the run, at least every 500 steps")
        self.fill(training + "save_steps", often, "with every evaluation")
        share = min(1 << 20, max(1 << 16, 2 ** round(math.log2(steps * step / 100))))
        self.fill("pretrain.evaluation_tokens", share, "about a hundredth of the training tokens, 65,536 to 1,048,576")
        return steps * step

    def _why_steps(self, shape: Shape, tokens: float, context: int) -> str:
        per_parameter = f"{tokens / shape.parameters:.3g} for each of {short(shape.parameters)} parameters"
        why = f"{short(tokens)} tokens, {per_parameter}; {TOKENS_PER_PARAMETER} are compute-optimal ({CHINCHILLA})"
        if self.dial in ("depth", "params") and not self.hours:
            return why
        why += f"; {self._budget():.2g} FLOPs at {shape.flops_per_token(context):.2g} a token"
        if self.hours:
            why += f", {self.hours:g} hours at {self.rate:.3g} FLOP/s, {self.source}"
        return why

    def _fill_optimizer(self, shape: Shape, tokens: float) -> None:
        training = "pretrain.training."
        best = 1.79 * shape.inner**-0.713 * tokens**0.307
        rate = float(f"{min(best, HIGHEST_LEARNING_RATE):.2g}")
        formula = f"1.79 N^-0.713 D^0.307 ({STEP_LAW}), N {short(shape.inner)} without embeddings, D {short(tokens)}"
        self.fill(training + "learning_rate", rate, formula + (", at most 2^-7" if best > rate * 1.1 else ""))
        if not self.written(training + "lr_scheduler_type") and not self.written(training + "lr_scheduler_kwargs"):
            self.fill(training + "lr_scheduler_type", "cosine_with_min_lr", "as the runs behind Step Law")
            self.fill(training + "lr_scheduler_kwargs", {"min_lr": 1e-5}, "as the runs behind Step Law")
        self.fill(training + "weight_decay", 0.1, "as the runs behind Step Law, and DeepSeek LLM's")


def in_heads(width: int) -> int:
    """The next width of whole heads of 64; from 512 on of pairs of them, which two GPUs can share out."""
    unit = 64 if width < 512 else 128
    return -(-width // unit) * unit


def heads_of(width: int) -> int:
    """Heads of 64 numbers, from width 2,048 on of 128, or the nearest that divide the width."""
    heads = max(1, round(width / (64 if width < 2048 else 128)))
    return next(number for number in range(heads, 0, -1) if width % number == 0)


def intermediate_of(width: int) -> int:
    """8/3 of the width, rounded up to a multiple of 64."""
    return -(-8 * width // 3 // 64) * 64


def vocabulary_of(inner: int, width: int) -> int:
    """Tokens of the compute-optimal vocabulary for `inner` parameters outside it, to the nearest 256.

    Approach 2 of Tao et al., https://arxiv.org/abs/2407.13623: 6,144 tokens x 512 for 33M, growing as their power of
    0.835; found with 33M to 1.1B and checked at 3B.
    """
    parameters = 6144 * 512 * (inner / 33e6) ** 0.835
    return max(SMALLEST_VOCABULARY, round(parameters / width / 256) * 256)


def batch_of(tokens: float) -> float:
    """Tokens a step for a run of `tokens`, by Step Law (https://arxiv.org/abs/2503.04715)."""
    return 0.58 * tokens**0.571


def parse_quantity(value: Any, key: str) -> float:
    """A positive number as people write it: 125M, 1.3B, 1e18, 12. Raises UserError."""
    match = re.fullmatch(r"\s*([\d_.]+(?:e[+-]?\d+)?)\s*([kmbgt]?)\s*", str(value).lower())
    try:
        found = float(match[1]) * SUFFIXES[match[2]] if match else 0.0
    except ValueError:
        found = 0.0
    if not 0 < found < math.inf or isinstance(value, bool):
        raise UserError(f"{key}: {value!r} does not fit; a positive number is wanted, as in 12, 125M or 1e18")
    return found


def short(number: float) -> str:
    """125M, 2.5B: three digits with the suffix that recipes take."""
    for suffix, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if number >= 0.9995 * size:
            return f"{number / size:.3g}{suffix}"
    return f"{number:.3g}"
