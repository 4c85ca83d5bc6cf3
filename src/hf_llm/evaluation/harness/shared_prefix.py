"""Token sequences that share their beginnings to the log-probabilities of their last tokens, each beginning computed
once.

A batch runs in up to three passes, each on top of the keys and values of the one before:

    stem      what all documents of a task begin with, such as the solved examples of one subject: once, kept from batch
              to batch
    trunks    what the choices of each document share beyond the stem, one row a document
    branches  the rest, one row for each different choice, those of like length in a pass

No row has padding before a token: the trunks of a batch are cut to the length of its shortest, and what is cut off is
computed with the branches, which are padded behind. So no mask is needed, and windows, ALiBi and learned positions mean
what they mean in a single pass.

The vocabulary head is applied only where a token is scored, and to a chunk of positions at a time: memory does not grow
with batch times length times vocabulary.

Shapes at line ends:
    R rows   T tokens   N tokens of all rows   D hidden size   V vocabulary   P scored positions   E scored tokens
"""

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer

# Device type -> logits that are held at a time, as in the loss (hf_llm.model.cross_entropy).
LOGITS_AT_ONCE = {"cpu": 2**23, "cuda": 2**27}
# Device type -> tokens of a pass, over all rows. A CPU core is busy with one long row.
TOKENS_AT_ONCE = {"cpu": 2**10, "cuda": 2**15}
MIN_STEM_TOKENS = 16  # a shorter stem costs a pass of its own and saves nothing
MIN_TRUNK_TOKENS = 4
MAX_CUT_TOKENS = 8  # of a trunk: those beyond the shortest one of the batch are computed once for each choice

MIN_FILLED = (
    0.8  # of the longest branch of a pass, the shortest that shares it: HellaSwag's endings differ by four times
)
MIN_BRANCH_TOKENS = {"cpu": 32, "cuda": 2**11}  # a pass of fewer is not worth its own launch

PROBE_TOKENS = 24  # of the sequence that tells whether a class can be run in parts
PROBE_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}  # of the largest value
HALF_PRECISION_TOLERANCE = 0.05


@dataclass(frozen=True)
class Scored:
    """A sequence of tokens whose last ones are scored."""

    tokens: tuple[int, ...]
    num_scored: int
    """How many tokens at the end; at least one token comes before them."""
    is_truncated: bool = False
    """Whether it has lost its beginning, since the model reads fewer tokens."""
    problem: str = ""
    """Why it cannot be scored; then the tokens mean nothing."""

    @property
    def inputs(self) -> tuple[int, ...]:
        """What the model reads: all but the last token, which is only predicted."""
        return self.tokens[:-1]

    @property
    def first_position(self) -> int:
        """The place of the input that predicts the first scored token."""
        return len(self.tokens) - 1 - self.num_scored


Document = Sequence[Scored]  # the choices of one document
LogLikelihood = tuple[float, bool]  # nats, and whether each token is the likeliest


@dataclass
class Plan:
    """Documents in batches that a pass can take, and what they all begin with."""

    stem: tuple[int, ...]
    batches: list[list[int]]
    """Places of documents, the longest first."""


def common_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """Return how many tokens all sequences begin with alike: those that the first and the last in order share."""
    if not sequences:
        return 0
    low = min(sequences)
    high = max(sequences)
    length = min(len(low), len(high))
    return next((place for place in range(length) if low[place] != high[place]), length)


def shared_length(document: Document) -> int:
    """Return how many tokens the choices of a document share before any of them is scored."""
    shared = common_prefix([choice.inputs for choice in document])
    return min(shared, *(choice.first_position for choice in document)) if shared else 0


def plan_batches(documents: Sequence[Document], batch_size: int | None, device_type: str, can_share: bool) -> Plan:
    """Put documents in batches of like length, the longest first.

    `batch_size` is the most documents of a batch; None for as many as the device takes. Where the model cannot be run
    in parts (`can_share`), nothing is shared.
    """
    stem: tuple[int, ...] = ()
    if can_share and len(documents) > 1:
        shared = common_prefix([choice.inputs for document in documents for choice in document])
        shared = min(shared, *(choice.first_position for document in documents for choice in document))
        if shared >= MIN_STEM_TOKENS:
            stem = documents[0][0].inputs[:shared]

    sizes = [DocumentSize.of(document, len(stem), can_share) for document in documents]
    order = sorted(range(len(documents)), key=lambda place: sizes[place].order, reverse=True)
    limit = TOKENS_AT_ONCE["cpu" if device_type == "cpu" else "cuda"]
    batches: list[list[int]] = []
    for place in order:
        batch = batches[-1] if batches else []
        is_full = batch_size is not None and len(batch) >= batch_size
        if not batch or is_full or not _fits(sizes, [*batch, place], limit):
            batches.append([])
        batches[-1].append(place)
    return Plan(stem, batches)


@dataclass(frozen=True)
class DocumentSize:
    """What a document takes beyond the stem."""

    trunk: int
    """Tokens that its rows share; 0 where it has one row."""
    longest: int
    """Tokens of its longest row, the trunk among them."""
    total: int
    """Tokens of all its rows, the trunk in each."""
    rows: int

    @classmethod
    def of(cls, document: Document, stem: int, can_share: bool) -> "DocumentSize":
        """Return the size of a document that begins with `stem` shared tokens."""
        lengths = [len(inputs) - stem for inputs in {choice.inputs for choice in document}]
        rows = len(lengths)
        trunk = shared_length(document) - stem
        if not can_share or rows == 1 or trunk < MIN_TRUNK_TOKENS:
            trunk = 0
        return cls(trunk, max(lengths), sum(lengths), rows)

    @property
    def order(self) -> tuple[int, int]:
        """What documents of a batch have alike."""
        return self.trunk, self.longest


def _fits(sizes: list[DocumentSize], batch: list[int], limit: int) -> bool:
    """Whether documents may be a batch: their passes take at most `limit` tokens, and little of a trunk is cut."""
    chosen = [sizes[place] for place in batch]
    trunk = min(size.trunk for size in chosen)
    if max(size.trunk for size in chosen) - trunk > MAX_CUT_TOKENS:
        return False
    branches = sum(size.total - size.rows * trunk for size in chosen)
    return len(chosen) * trunk + branches <= limit


def group_by_length(lengths: Sequence[int], device_type: str) -> list[list[int]]:
    """Put rows of like length in a pass each, so that little of it is padding; the longest first."""
    groups: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: lengths[row], reverse=True):
        if groups:
            longest = lengths[groups[-1][0]]
            is_small = len(groups[-1]) * longest < MIN_BRANCH_TOKENS[device_type]
            if is_small or lengths[row] >= MIN_FILLED * longest:
                groups[-1].append(row)
                continue
        groups.append([row])
    return groups


class PrefixScorer:
    """Scores batches of documents with one model."""

    def __init__(self, model: PreTrainedModel):
        self.model = model
        self.body: Any = model.base_model
        self.device_type = "cpu" if model.device.type == "cpu" else "cuda"
        self._stem: tuple[int, ...] = ()
        self._stem_cache: DynamicCache | None = None

    @torch.no_grad()
    def score(self, documents: Sequence[Document], stem: tuple[int, ...], can_share: bool) -> list[list[LogLikelihood]]:
        """Return the log-likelihood of each choice of each document; all begin with `stem`."""
        # One row for each different sequence of a document.
        rows: list[tuple[int, ...]] = []
        row_of_choice: list[list[int]] = []
        document_of_row: list[int] = []
        for number, document in enumerate(documents):
            places: dict[tuple[int, ...], int] = {}
            for choice in document:
                if choice.inputs not in places:
                    places[choice.inputs] = len(rows)
                    rows.append(choice.inputs)
                    document_of_row.append(number)
            row_of_choice.append([places[choice.inputs] for choice in document])

        # Stem and trunks
        trunk_end = len(stem)
        if can_share and len(rows) > len(documents):
            sizes = [DocumentSize.of(document, len(stem), can_share) for document in documents]
            trunk_end += min(size.trunk for size in sizes)
        has_trunks = trunk_end > len(stem)
        cache = self._expand_stem(stem, len(documents)) if has_trunks else None
        if has_trunks:
            cache = self._extend([document[0].inputs[len(stem) : trunk_end] for document in documents], cache)

        # Branches, without their padding
        hidden_states: list[Any] = [None] * len(rows)
        lengths = [len(row) - trunk_end for row in rows]
        for group in group_by_length(lengths, self.device_type):
            if has_trunks:
                of_rows = select_rows(cache, [document_of_row[row] for row in group])
            else:
                of_rows = self._expand_stem(stem, len(group))
            output = self._run([rows[row][trunk_end:] for row in group], of_rows)  # rows of the group, T D
            for row, states in zip(group, output, strict=True):
                hidden_states[row] = states[: lengths[row]]

        starts = [0, *itertools.accumulate(lengths)]
        first_places = [start - trunk_end for start in starts[:-1]]
        return self._read_off(documents, row_of_choice, torch.cat(hidden_states), first_places)

    def _expand_stem(self, stem: tuple[int, ...], rows: int) -> DynamicCache | None:
        """Return the keys and values of the stem for so many rows, without a copy of them."""
        if not stem:
            return None
        if stem != self._stem:
            self._stem_cache = self._extend([stem], None)
            self._stem = stem
        cache = copy_cache(self._stem_cache)
        for layer in cache.layers:
            assert layer.keys is not None and layer.values is not None  # the stem has passed
            layer.keys = layer.keys.expand(rows, *layer.keys.shape[1:])
            layer.values = layer.values.expand(rows, *layer.values.shape[1:])
        return cache

    def _extend(self, tokens: Sequence[Sequence[int]], cache: DynamicCache | None) -> DynamicCache:
        """Run tokens of equal length, and return the cache with their keys and values."""
        cache = cache or DynamicCache(config=self.model.config)
        input_ids = torch.tensor(tokens, device=self.model.device)  # R T
        self.body(input_ids=input_ids, past_key_values=cache, use_cache=True)
        return cache

    def _run(self, branches: Sequence[Sequence[int]], cache: DynamicCache | None) -> torch.Tensor:
        """Return the hidden states of branches, R T D; behind the shorter ones they mean nothing."""
        length = max(map(len, branches))
        padded = [[*branch, *[0] * (length - len(branch))] for branch in branches]
        input_ids = torch.tensor(padded, device=self.model.device)  # R T
        output = self.body(input_ids=input_ids, past_key_values=cache, use_cache=cache is not None)
        return output.last_hidden_state

    def _read_off(
        self,
        documents: Sequence[Document],
        row_of_choice: list[list[int]],
        hidden_states: torch.Tensor,  # N D, of all rows one after the other
        first_places: list[int],
    ) -> list[list[LogLikelihood]]:
        """Return the log-likelihoods of hidden states; those of a row begin at its first place, less what it shares."""
        # The place of each scored token among the hidden states. Choices of one token share theirs.
        positions: list[int] = []
        targets: list[int] = []
        for document, rows in zip(documents, row_of_choice, strict=True):
            for choice, row in zip(document, rows, strict=True):
                first = first_places[row] + choice.first_position
                positions.extend(range(first, first + choice.num_scored))
                targets.extend(choice.tokens[-choice.num_scored :])

        different = sorted(set(positions))
        place = {position: number for number, position in enumerate(different)}
        entries = sorted(range(len(positions)), key=lambda entry: place[positions[entry]])
        device = hidden_states.device
        kept = hidden_states[torch.tensor(different, device=device)]  # P D
        entry_place = torch.tensor([place[positions[entry]] for entry in entries], device=device)  # E
        entry_target = torch.tensor([targets[entry] for entry in entries], device=device)  # E

        log_probs, is_likeliest = self._score_positions(kept, entry_place, entry_target)  # E, E
        by_entry: list[tuple[float, bool]] = [(0.0, False)] * len(entries)
        for entry, log_prob, likeliest in zip(entries, log_probs.tolist(), is_likeliest.tolist(), strict=True):
            by_entry[entry] = (log_prob, likeliest)

        scored = iter(by_entry)
        results = []
        for document in documents:
            of_document = []
            for choice in document:
                own = list(itertools.islice(scored, choice.num_scored))
                of_document.append((sum(value for value, _ in own), all(likeliest for _, likeliest in own)))
            results.append(of_document)
        return results

    def _score_positions(
        self,
        hidden_states: torch.Tensor,  # P D
        entry_place: torch.Tensor,  # E, ascending
        entry_target: torch.Tensor,  # E
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the log-probability of each scored token in nats, and whether it is the likeliest, E each."""
        vocabulary = self.model.config.get_text_config().vocab_size
        chunk = max(1, LOGITS_AT_ONCE[self.device_type] // vocabulary)
        log_probs = []
        is_likeliest = []
        for start in range(0, len(hidden_states), chunk):
            logits = head_logits(self.model, hidden_states[start : start + chunk])  # chunk V
            low, high = torch.searchsorted(
                entry_place, torch.tensor([start, start + chunk], device=entry_place.device)
            ).tolist()
            place = entry_place[low:high] - start
            target = entry_target[low:high]
            log_sums = torch.logsumexp(logits, dim=-1)  # chunk
            log_probs.append(logits[place, target] - log_sums[place])
            is_likeliest.append(logits.argmax(dim=-1)[place] == target)
        return torch.cat(log_probs), torch.cat(is_likeliest)


def copy_cache(cache: DynamicCache | None) -> DynamicCache:
    """Return a cache with the same keys and values, which may grow without changing the other."""
    assert cache is not None
    copied = copy.copy(cache)
    copied.layers = [copy.copy(layer) for layer in cache.layers]
    return copied


def select_rows(cache: DynamicCache | None, rows: list[int]) -> DynamicCache:
    """Return a cache of its own with these rows of another, in this order; a row may come several times."""
    selected = copy_cache(cache)
    layer = selected.layers[0]
    assert layer.keys is not None
    selected.batch_select_indices(torch.tensor(rows, device=layer.keys.device))
    return selected


# ---- what a class of models can do


def head_logits(model: PreTrainedModel, hidden_states: torch.Tensor) -> torch.Tensor:
    """Return the logits of hidden states, P D, as the model's own forward pass has them, P V, in float32.

    Beside the head a class may bend logits (Gemma 2, ours) or scale them (Cohere, Granite); what else one may do,
    `can_split_head` finds out.
    """
    head: Any = model.get_output_embeddings()
    config = model.config.get_text_config()
    logits = head(hidden_states)
    scale = getattr(model, "logit_scale", None) or getattr(config, "logit_scale", None)  # Cohere
    if isinstance(scale, float | int):
        logits = logits * scale
    divisor = getattr(config, "logits_scaling", None)  # Granite
    if divisor:
        logits = logits / divisor
    cap = getattr(config, "final_logit_softcapping", None)
    if cap:
        logits = torch.tanh(logits / cap) * cap
    return logits.float()


@torch.no_grad()
def can_split_head(model: PreTrainedModel) -> bool:
    """Whether the model's logits are `head_logits` of the hidden states of its base, found out with a few tokens."""
    if model.get_output_embeddings() is None or model.base_model is model:
        return False
    probe = probe_tokens(model)
    output = model.base_model(input_ids=probe, use_cache=False)
    hidden_states = getattr(output, "last_hidden_state", None)
    if hidden_states is None:
        return False
    logits = model(input_ids=probe).logits[0].float()
    return is_close(head_logits(model, hidden_states[0]), logits, model.dtype)


@torch.no_grad()
def can_share_prefix(model: PreTrainedModel) -> bool:
    """Whether the model gives the same hidden states where it runs in parts, on top of a cache for each layer.

    Rotary angles that depend on how long a text is (dynamic NTK, LongRoPE) would differ for a short part.
    """
    config = model.config.get_text_config()
    rope_types = _list_rope_types(getattr(config, "rope_parameters", None) or {})
    if rope_types & {"dynamic", "longrope"}:
        return False
    probe = probe_tokens(model)
    length = probe.shape[1]
    if length < 6:
        return False
    whole = model.base_model(input_ids=probe, use_cache=False).last_hidden_state  # 1 T D

    scorer = PrefixScorer(model)
    tokens = probe[0].tolist()
    cuts = (length // 3, 2 * length // 3)
    cache = DynamicCache(config=model.config)
    if not cache.layers or not all(isinstance(layer, DynamicLayer) for layer in cache.layers):
        return False
    stem = tuple(tokens[: cuts[0]])
    cache = scorer._expand_stem(stem, 2)
    assert cache is not None
    if not all(isinstance(layer, DynamicLayer) and layer.is_initialized for layer in cache.layers):
        return False
    cache = scorer._extend([tokens[cuts[0] : cuts[1]]] * 2, cache)
    parts = scorer._run([tokens[cuts[1] :]] * 3, select_rows(cache, [1, 0, 1]))  # 3 T D
    return is_close(parts[2], whole[0, cuts[1] :], model.dtype)


def probe_tokens(model: PreTrainedModel) -> torch.Tensor:
    """Return token ids to try a model with, 1 T."""
    config = model.config.get_text_config()
    length = min(PROBE_TOKENS, getattr(config, "max_position_embeddings", None) or PROBE_TOKENS)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(config.vocab_size, (1, length), generator=generator).to(model.device)


def is_close(values: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether two tensors differ by no more than what is lost in a model of this precision."""
    tolerance = PROBE_TOLERANCE.get(dtype, HALF_PRECISION_TOLERANCE)
    largest = expected.abs().max()
    return values.shape == expected.shape and bool((values - expected).abs().max() <= tolerance * largest)


def _list_rope_types(parameters: dict) -> set[str]:
    """Return the kinds of rotary scaling of a config, which may have several sets of parameters."""
    kinds = {str(parameters.get("rope_type"))}
    for value in parameters.values():
        if isinstance(value, dict):
            kinds |= _list_rope_types(value)
    return kinds
