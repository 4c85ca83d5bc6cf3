"""Derive a whole pretraining from one number in a recipe: `depth: 12`, `params: 125M`, `flops: 1e18` or `hours: 2`.

The model's shape, the vocabulary, tokens, batch size, learning rate and so on follow from it by published scaling
rules. A value that the recipe writes itself is kept, and the values that depend on it are derived from it.
docs/sizing.md lists the rules.
"""

import math
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

from hf_llm.core.errors import UserError
from hf_llm.pipeline.tokens_folder import read_index

SIZING_KEYS = ("depth", "params", "flops", "hours")

CHINCHILLA = "Chinchilla, https://arxiv.org/abs/2203.15556"
STEP_LAW = "Step Law, https://arxiv.org/abs/2503.04715"
STEP_LAW_RUNS = "as the runs behind Step Law"

TOKENS_PER_PARAMETER = 20  # Chinchilla's table 3
ASPECT_RATIO = 64  # width / layers; nanochat's, and about that of GPT-2 and Qwen3's small models
MIN_ASPECT_RATIO = 32
MAX_ASPECT_RATIO = 128
# The share of a data sheet's FLOP/s that training reaches: Llama 3 on H100s 0.38 to 0.43 (arXiv 2407.21783).
DATA_SHEET_UTILISATION = 0.4

MAX_LAYERS = 128
MIN_VOCABULARY = 2048
MIN_CONTEXT = 256
MAX_CONTEXT = 2048
SIZE_MULTIPLE = 64  # of vocabulary and intermediate size
MAX_LEARNING_RATE = 2**-7  # the highest that the runs behind Step Law tried
MAX_WARMUP_STEPS = 2000
MAX_EVALUATION_INTERVAL = 500  # steps
MIN_EVALUATION_TOKENS = 1 << 16
MAX_EVALUATION_TOKENS = 1 << 20

QUANTITY_SUFFIXES = {"": 1, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}


@dataclass(frozen=True)
class ModelShape:
    """The sizes of an `hf_llm` model."""

    layers: int
    width: int
    heads: int
    head_dim: int
    key_value_heads: int
    intermediate: int
    vocabulary: int
    tied: bool = True

    @property
    def inner_parameters(self) -> int:
        """Parameters without embeddings and head."""
        norms = 2 * self.width
        head_norms = 2 * self.head_dim
        attention = 2 * self.width * self.head_dim * (self.heads + self.key_value_heads)
        mlp = 3 * self.width * self.intermediate
        final_norm = self.width
        return self.layers * (attention + head_norms + mlp + norms) + final_norm

    @property
    def parameters(self) -> int:
        """All parameters, tied embeddings counted once."""
        matrices = 1 if self.tied else 2
        return self.inner_parameters + self.vocabulary * self.width * matrices

    def flops_per_token(self, context: int) -> int:
        """Count forward and backward pass, as `hf_llm.model.summary.flops_per_token` does for a built model."""
        # Parameters in matrix products: the inner ones and the head. Looking up an embedding takes no FLOPs.
        multiplying_parameters = self.inner_parameters + self.vocabulary * self.width
        attention = 12 * self.layers * self.heads * self.head_dim * context
        return 6 * multiplying_parameters + attention


def apply_sizing(tree: dict[str, Any], hours: float | None = None) -> tuple[dict[str, Any], dict[str, str]]:
    """Fill in all values that follow from a recipe's sizing key.

    Returns the filled tree, and the reason of each derived value: `{"model.hidden_size": "64 for each ..."}`. With
    `hours`, the number of tokens is what `machine` can train on in that time, for every sizing key. A tree without a
    sizing key is returned unchanged. Raises UserError for two sizing keys at once and for values that do not fit.
    """
    keys = [key for key in SIZING_KEYS if tree.get(key) is not None]
    if len(keys) > 1:
        raise UserError(f"{' and '.join(keys)}: one sizing key at a time; remove all but one (--{keys[0]}=null)")
    if not keys:
        if tree.get("machine") is not None:
            raise UserError(f"machine: is read with one of {', '.join(SIZING_KEYS)}; add one, or remove it")
        return tree, {}
    return SizingDerivation(tree, keys[0], hours).derive_values()


def read_shape(tree: dict[str, Any]) -> ModelShape:
    """Read the shape from a recipe's tree after `apply_sizing`."""
    model = tree["model"]
    width = model["hidden_size"]
    heads = model["num_attention_heads"]
    vocabulary = model.get("vocab_size")
    if not vocabulary:
        vocabulary = round_up(tree["tokenizer"]["vocab_size"], SIZE_MULTIPLE)

    return ModelShape(
        layers=model["num_hidden_layers"],
        width=width,
        heads=heads,
        head_dim=model.get("head_dim") or width // heads,
        key_value_heads=model.get("num_key_value_heads") or heads,
        intermediate=model["intermediate_size"],
        vocabulary=vocabulary,
        tied=model.get("tie_word_embeddings") is not False,
    )


class SizingDerivation:
    """Derives one value of a recipe after another, from those that the recipe writes or that were derived before."""

    def __init__(self, tree: dict[str, Any], sizing_key: str, hours: float | None = None):
        self.tree = deepcopy(tree)
        for section in ("tokenizer", "model", "pretrain", "pretrain.training"):
            self._get_section(section)
        self.sizing_key = sizing_key
        self.amount = parse_quantity(tree[sizing_key], sizing_key)
        self.hours = self.amount if sizing_key == "hours" else hours
        self.reasons: dict[str, str] = {}
        self._check_tree()

    def derive_values(self) -> tuple[dict[str, Any], dict[str, str]]:
        """Derive all values. Returns the filled tree, and the reasons by key in the order of a recipe."""
        self.devices, self.flops_per_second, self.rate_source = self._read_machine()
        shape, reason = self._choose_shape()
        self._fill_shape(shape, reason)
        context = self._fill_context(shape)
        tokens = self._choose_tokens(shape, context)
        tokens_per_step = self._fill_tokens_per_step(tokens, context)
        tokens = self._fill_steps(shape, tokens, tokens_per_step, context)
        self._fill_optimizer(shape, tokens)
        return self.tree, self.reasons

    # Reading and filling the tree

    def find_written(self, *keys: str) -> Any:
        """Return the first value that is written under one of `keys`; None where none is (`auto` is not a value)."""
        for key in keys:
            section, _, name = key.rpartition(".")
            value = self._get_section(section).get(name)
            if value is not None and value != "auto":
                return value
        return None

    def fill_value(self, key: str, value: Any, reason: str) -> Any:
        """Set a derived value, unless the recipe writes one. Returns the value that applies."""
        written = self.find_written(key)
        if written is not None:
            return written
        section, _, name = key.rpartition(".")
        self._get_section(section)[name] = value
        self.reasons[key] = reason
        return value

    def find_written_integer(self, *keys: str) -> int | None:
        """Return the positive whole number that the recipe writes under one of `keys`. Raises UserError for others."""
        value = self.find_written(*keys)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"{' or '.join(keys)}: {value!r} does not fit; a positive whole number is expected")
        return value

    def _get_section(self, path: str) -> dict[str, Any]:
        """Return a section of the tree, adding it where it is missing."""
        section = self.tree
        for name in path.split("."):
            if section.get(name) is None:
                section[name] = {}
            section = section[name]
            if not isinstance(section, dict):
                raise UserError(f"{path}: {section!r} does not fit; this section holds keys")
        return section

    def _check_tree(self) -> None:
        """Raise UserError if the recipe writes something that sizing cannot work with."""
        model_type = self.find_written("model.model_type") or "hf_llm"
        if model_type != "hf_llm":
            raise UserError(
                f"{self.sizing_key}: sizing shapes hf_llm models, and model.model_type is {model_type!r}; remove "
                f"{self.sizing_key} and write the sizes, or remove model_type"
            )
        is_vocabulary_known = self.find_written("model.vocab_size") or self.find_written("pretrain.tokens")
        if self.find_written("tokenizer.use") and not is_vocabulary_known:
            raise UserError(
                f"{self.sizing_key}: sizing needs the vocabulary of tokenizer.use; add model.vocab_size, the "
                "tokenizer's number of tokens rounded up to a multiple of 64"
            )
        if self.sizing_key == "depth" and (self.amount != int(self.amount) or self.amount > MAX_LAYERS):
            raise UserError(
                f"depth: {self.tree['depth']!r} does not fit; a number of layers from 1 to {MAX_LAYERS} is expected"
            )
        if self.hours and self.tree.get("machine") is None:
            raise UserError(
                "hours: needs `machine:` beside it, so that the recipe means the same everywhere: 1xrtx4090, or the "
                "FLOP/s at which the hardware trains; `python -m hf_llm.doctor` prints the line to add"
            )

    def _read_machine(self) -> tuple[int, float, str]:
        """Return the number of devices, the FLOP/s that training reaches on all together, and how these are known."""
        machine = self.tree.get("machine")
        if machine is None:
            return 1, 0.0, ""
        is_number = re.fullmatch(r"[\d._]+(e\+?\d+)?", str(machine), re.IGNORECASE)
        if is_number:
            return 1, parse_quantity(machine, "machine"), "measured"

        from hf_llm.hardware.devices import parse_hardware, training_dtype

        count, device = parse_hardware(str(machine))
        dtype = training_dtype(device)
        if dtype is None:
            raise UserError(
                f"machine: {device.name}'s maker publishes no FLOP/s; write those that training reaches instead, which "
                "`python -m hf_llm.doctor` measures on it"
            )
        flops_per_second = DATA_SHEET_UTILISATION * count * device.flops[dtype]
        return count, flops_per_second, f"{DATA_SHEET_UTILISATION:.0%} of {machine}"

    # The model's shape

    def _choose_shape(self) -> tuple[ModelShape, str]:
        """Return the model's shape, and the reason for it."""
        if self.sizing_key == "depth":
            depth = int(self.amount)
            layers = self.find_written_integer("model.num_hidden_layers") or depth
            width = round_up_to_heads(ASPECT_RATIO * depth)
            shape = self._build_shape(layers, width)
            return shape, f"depth {depth}"

        if self.sizing_key == "params":
            shape = self._find_nearest_shape(self.amount)
            return shape, f"{format_quantity(self.amount)} parameters"

        budget = self._flop_budget()
        shape = self._choose_shape_for_budget(budget)
        return shape, f"the best use of {budget:.2g} FLOPs (parameters = tokens / {TOKENS_PER_PARAMETER})"

    def _choose_shape_for_budget(self, budget: float) -> ModelShape:
        """Choose the shape whose training on TOKENS_PER_PARAMETER takes `budget` FLOPs."""
        # First estimate: a token takes about 6 FLOPs for each parameter.
        parameters = math.sqrt(budget / 6 / TOKENS_PER_PARAMETER)
        shape = self._find_nearest_shape(parameters)

        # Second estimate, with the FLOPs that a token really takes in that shape: attention adds to the 6.
        context = self._choose_context(shape)
        flops_per_token = shape.flops_per_token(context)
        parameters = math.sqrt(budget * shape.parameters / flops_per_token / TOKENS_PER_PARAMETER)
        return self._find_nearest_shape(parameters)

    def _flop_budget(self) -> float:
        if self.sizing_key == "flops":
            return self.amount
        assert self.hours is not None, "there is a budget only for a number of FLOPs or of hours"
        return self.hours * 3600 * self.flops_per_second

    def _find_nearest_shape(self, parameters: float) -> ModelShape:
        """Find a shape of about this many parameters: among those within 2%, the one nearest to ASPECT_RATIO.

        If none is within 2%, the one with the nearest number of parameters. For the sizing key `params` the
        intermediate size is then adjusted. Raises UserError if that does not come within 5% either.
        """

        def distance(shape: ModelShape) -> tuple[float, float]:
            parameter_distance = abs(math.log(shape.parameters / parameters))
            aspect_distance = abs(math.log(shape.width / shape.layers / ASPECT_RATIO))
            return max(parameter_distance, 0.02), aspect_distance  # all within 2% count as equally near

        nearest = min(self._candidate_shapes(parameters), key=distance)
        if self.sizing_key != "params":
            return nearest  # the number of tokens makes up for the difference

        nearest = self._adjust_intermediate(nearest, parameters)
        if abs(nearest.parameters / parameters - 1) > 0.05:
            raise UserError(
                f"params: no shape that the recipe leaves open has about {format_quantity(parameters)} parameters; "
                f"{format_quantity(nearest.parameters)} is the nearest"
            )
        return nearest

    def _adjust_intermediate(self, shape: ModelShape, parameters: float) -> ModelShape:
        """Choose the intermediate size that comes nearest to `parameters`, from twice to four times the width."""
        is_close = abs(shape.parameters / parameters - 1) < 0.02
        if self.find_written_integer("model.intermediate_size") or is_close:
            return shape

        # One more unit of the intermediate size adds `width` parameters to each of the 3 matrices of every layer's MLP.
        missing_units = (parameters - shape.parameters) / (3 * shape.width * shape.layers)
        intermediate = round((shape.intermediate + missing_units) / SIZE_MULTIPLE) * SIZE_MULTIPLE
        intermediate = max(2 * shape.width, min(4 * shape.width, intermediate))
        return replace(shape, intermediate=intermediate)

    def _candidate_shapes(self, parameters: float) -> Iterator[ModelShape]:
        """Yield every shape with an aspect ratio from 32 to 128 that is not much larger than `parameters`."""
        written_layers = self.find_written_integer("model.num_hidden_layers")
        written_width = self.find_written_integer("model.hidden_size")

        all_layers = [written_layers] if written_layers else range(2, MAX_LAYERS + 1)
        for layers in all_layers:
            widths = [written_width] if written_width else _candidate_widths(layers)
            for width in widths:
                shape = self._build_shape(layers, width)
                yield shape
                if shape.parameters > 2 * parameters:
                    break

    def _build_shape(self, layers: int, width: int) -> ModelShape:
        """Build the shape of this many layers and this width; sizes that the recipe writes replace derived ones."""
        width = self.find_written_integer("model.hidden_size") or width
        head_dim = self.find_written_integer("model.head_dim")
        heads = self.find_written_integer("model.num_attention_heads")
        if not heads:
            heads = max(1, width // head_dim) if head_dim else choose_heads(width)

        shape = ModelShape(
            layers=layers,
            width=width,
            heads=heads,
            head_dim=head_dim or width // heads,
            key_value_heads=self.find_written_integer("model.num_key_value_heads") or heads,
            intermediate=self.find_written_integer("model.intermediate_size") or choose_intermediate(width),
            vocabulary=0,
            tied=self.find_written("model.tie_word_embeddings") is not False,
        )
        vocabulary = self.find_written_integer("model.vocab_size")
        tokens = self.find_written("pretrain.tokens")
        if not vocabulary and tokens:
            vocabulary = read_index(tokens)["vocab_size"]
        vocabulary = vocabulary or self.find_written_integer("tokenizer.vocab_size")
        if not vocabulary:
            vocabulary = choose_vocabulary(shape.inner_parameters, width)
        return replace(shape, vocabulary=round_up(vocabulary, SIZE_MULTIPLE))

    def _fill_shape(self, shape: ModelShape, layers_reason: str) -> None:
        if self.find_written("pretrain.tokens"):
            self.fill_value("model.vocab_size", shape.vocabulary, "the tokenizer's of pretrain.tokens")
        elif not self.find_written("tokenizer.use"):
            self.fill_value(
                "tokenizer.vocab_size",
                shape.vocabulary,
                f"its parameters grow as the other {format_quantity(shape.inner_parameters)} to the power of 0.835 "
                "(https://arxiv.org/abs/2407.13623, approach 2), at least 2,048",
            )

        aspect_ratio = f"width / layers {shape.width / shape.layers:.0f}, near {ASPECT_RATIO} as nanochat's"
        width_reason = f"{aspect_ratio}; {format_quantity(shape.parameters)} parameters in all"
        self.fill_value("model.num_hidden_layers", shape.layers, layers_reason)
        self.fill_value("model.hidden_size", shape.width, width_reason)
        self.fill_value("model.num_attention_heads", shape.heads, "of 64 numbers each, from width 2,048 on of 128")

        reason = "8/3 of the width, as SwiGLU's three matrices want (https://arxiv.org/abs/2002.05202), in steps of 64"
        if shape.intermediate != choose_intermediate(shape.width):
            share = shape.intermediate / shape.width
            reason += f", then {share:.2f} of it to come nearer to the parameters asked for"
        self.fill_value("model.intermediate_size", shape.intermediate, reason)

    # The run's context, tokens, steps and optimizer

    def _choose_tokens(self, shape: ModelShape, context: int) -> float:
        """Choose how many tokens to train on: by the number of parameters, or what the FLOP budget is enough for."""
        if self.sizing_key in ("depth", "params") and not self.hours:
            return TOKENS_PER_PARAMETER * shape.parameters
        return self._flop_budget() / shape.flops_per_token(context)

    def _fill_context(self, shape: ModelShape) -> int:
        """Set the model's context, unless the recipe writes one. Returns the context of pretraining, in tokens."""
        context = self._choose_context(shape)
        if not self.find_written("pretrain.context"):
            reason = "a power of two, at most twice the width (attention is a third of the rest then) and 1/8 of a step"
            self.fill_value("model.max_position_embeddings", context, f"{reason}, from 256 to 2,048")
        return context

    def _choose_context(self, shape: ModelShape) -> int:
        """Choose the context: the recipe's, else a power of two, limited by the width and the tokens of a step."""
        written = self.find_written_integer("pretrain.context", "model.max_position_embeddings")
        # The tokens of the run depend on the context, if only a little: they are estimated with the shortest one.
        tokens_per_step = best_tokens_per_step(self._choose_tokens(shape, written or MIN_CONTEXT))
        if written:
            return written

        limit = min(2 * shape.width, max(tokens_per_step / 8, 1))
        power_of_two = 2 ** int(math.log2(limit))
        return min(MAX_CONTEXT, max(MIN_CONTEXT, power_of_two))

    def _fill_tokens_per_step(self, tokens: float, context: int) -> int:
        """Set the tokens of a step: for every device the same power of two of windows, near Step Law's optimum."""
        optimum = best_tokens_per_step(tokens)
        smallest_step = context * self.devices  # one window for each device
        windows_per_device = 2 ** max(0, round(math.log2(optimum / smallest_step)))
        reason = f"near {optimum:,.0f} = 0.58 tokens^0.571 ({STEP_LAW}), in windows for each device"
        self.fill_value("pretrain.tokens_per_step", smallest_step * windows_per_device, reason)
        written = self.find_written_integer("pretrain.tokens_per_step")
        assert written is not None, "it has just been filled in"
        return written

    def _fill_steps(self, shape: ModelShape, tokens: float, tokens_per_step: int, context: int) -> float:
        """Set steps, warm-up and evaluations. Returns the number of training tokens that the steps amount to."""
        training = "pretrain.training."
        warmup_reason = "a twentieth of the run, at most the 2,000 steps of the runs behind Step Law"
        if self.find_written(training + "num_train_epochs") and not self.find_written(training + "max_steps"):
            self.fill_value(training + "warmup_steps", 0.05, warmup_reason)
            return tokens

        derived_steps = max(1, round(tokens / tokens_per_step))
        steps_reason = self._explain_steps(shape, tokens, context)
        steps = self.fill_value(training + "max_steps", derived_steps, steps_reason)
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            return tokens  # the recipe's own value does not fit; the stage raises the error

        warmup_steps = min(MAX_WARMUP_STEPS, max(1, round(steps / 20)))
        self.fill_value(training + "warmup_steps", warmup_steps, warmup_reason)

        interval = min(MAX_EVALUATION_INTERVAL, max(1, round(steps / 10)))
        self.fill_value(training + "eval_steps", interval, "ten times in the run, at least every 500 steps")
        self.fill_value(training + "save_steps", interval, "with every evaluation")

        training_tokens = steps * tokens_per_step
        power_of_two = 2 ** round(math.log2(training_tokens / 100))
        self.fill_value(
            "pretrain.evaluation_tokens",
            min(MAX_EVALUATION_TOKENS, max(MIN_EVALUATION_TOKENS, power_of_two)),
            "about a hundredth of the training tokens, 65,536 to 1,048,576",
        )
        return training_tokens

    def _explain_steps(self, shape: ModelShape, tokens: float, context: int) -> str:
        tokens_per_parameter = tokens / shape.parameters
        reason = (
            f"{format_quantity(tokens)} tokens, {tokens_per_parameter:.3g} for each of "
            f"{format_quantity(shape.parameters)} parameters; {TOKENS_PER_PARAMETER} are compute-optimal ({CHINCHILLA})"
        )
        if self.sizing_key in ("depth", "params") and not self.hours:
            return reason

        reason += f"; {self._flop_budget():.2g} FLOPs at {shape.flops_per_token(context):.2g} a token"
        if self.hours:
            reason += f", {self.hours:g} hours at {self.flops_per_second:.3g} FLOP/s, {self.rate_source}"
        return reason

    def _fill_optimizer(self, shape: ModelShape, tokens: float) -> None:
        """Set learning rate, its schedule and weight decay by Step Law."""
        training = "pretrain.training."
        inner_parameters = shape.inner_parameters
        optimum = 1.79 * inner_parameters**-0.713 * tokens**0.307
        learning_rate = float(f"{min(optimum, MAX_LEARNING_RATE):.2g}")
        reason = (
            f"1.79 N^-0.713 D^0.307 ({STEP_LAW}), N {format_quantity(inner_parameters)} without embeddings, "
            f"D {format_quantity(tokens)}"
        )
        is_limited = optimum > learning_rate * 1.1
        if is_limited:
            reason += ", at most 2^-7"
        self.fill_value(training + "learning_rate", learning_rate, reason)

        scheduler = self.find_written(training + "lr_scheduler_type")
        scheduler_settings = self.find_written(training + "lr_scheduler_kwargs")
        if not scheduler and not scheduler_settings:
            self.fill_value(training + "lr_scheduler_type", "cosine_with_min_lr", STEP_LAW_RUNS)
            self.fill_value(training + "lr_scheduler_kwargs", {"min_lr": 1e-5}, STEP_LAW_RUNS)
        self.fill_value(training + "weight_decay", 0.1, f"{STEP_LAW_RUNS}, and DeepSeek LLM's")


def _candidate_widths(layers: int) -> Iterable[int]:
    """Return the widths to try for a number of layers: multiples of the head size, each once, from narrow to wide."""
    narrowest = MIN_ASPECT_RATIO * layers
    widest = MAX_ASPECT_RATIO * layers
    return dict.fromkeys(map(round_up_to_heads, range(narrowest, widest + 1, 64)))


def round_up(value: int, multiple: int) -> int:
    """Round `value` up to a multiple, exactly for integers of any size."""
    return (value + multiple - 1) // multiple * multiple


def round_up_to_heads(width: int) -> int:
    """Round a width up to whole heads of 64; from 512 on to pairs of heads, so that two GPUs can split them."""
    unit = 64 if width < 512 else 128
    return round_up(width, unit)


def choose_heads(width: int) -> int:
    """Choose the number of heads: of 64 dimensions each, from width 2,048 on of 128.

    If that number does not divide the width, the next smaller one that does.
    """
    head_dim = 64 if width < 2048 else 128
    heads = max(1, round(width / head_dim))
    while width % heads:
        heads -= 1
    return heads


def choose_intermediate(width: int) -> int:
    """Choose 8/3 of the width, rounded up to a multiple of 64."""
    return round_up(math.ceil(8 * width / 3), SIZE_MULTIPLE)


def choose_vocabulary(inner_parameters: int, width: int) -> int:
    """Choose the compute-optimal number of tokens for the parameters outside the vocabulary, to the nearest 256.

    Approach 2 of Tao et al., https://arxiv.org/abs/2407.13623: 6,144 tokens x 512 for 33M, growing as their power of
    0.835; found with 33M to 1.1B and checked at 3B.
    """
    vocabulary_parameters = 6144 * 512 * (inner_parameters / 33e6) ** 0.835
    return max(MIN_VOCABULARY, round(vocabulary_parameters / width / 256) * 256)


def best_tokens_per_step(tokens: float) -> float:
    """Return the best number of tokens in a step for a run of `tokens`, by Step Law (https://arxiv.org/abs/2503.04715)."""
    return 0.58 * tokens**0.571


def parse_quantity(value: Any, key: str) -> float:
    """Parse a positive number such as 125M, 1.3B, 1e18 or 12. Raises UserError that names `key`."""
    match = re.fullmatch(r"\s*([\d_.]+(?:e[+-]?\d+)?)\s*([kmbgt]?)\s*", str(value).lower())
    quantity = 0.0
    if match:
        with suppress(ValueError):  # raised for 1..2, for example
            quantity = float(match[1]) * QUANTITY_SUFFIXES[match[2]]

    if not 0 < quantity < math.inf or isinstance(value, bool):
        raise UserError(f"{key}: {value!r} does not fit; a positive number is expected, as in 12, 125M or 1e18")
    return quantity


def format_quantity(value: float) -> str:
    """Format a number with three digits and a suffix that `parse_quantity` reads: 125M, 2.5B."""
    for suffix, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if value >= 0.9995 * size:
            return f"{value / size:.3g}{suffix}"
    return f"{value:.3g}"
