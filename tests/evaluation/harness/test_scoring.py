"""The faster scoring against lm_eval's own HFLM on the same model: the same log-likelihoods and choices."""

import math

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import (
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from hf_llm.evaluation.benchmark import NotRunError
from hf_llm.evaluation.harness import shared_prefix
from hf_llm.evaluation.harness.scoring import SharedPrefixLM
from hf_llm.evaluation.harness.shared_prefix import Scored, common_prefix, group_by_length, plan_batches
from hf_llm.inference.generate import set_stop_tokens
from hf_llm.tokenization.text_boundaries import set_boundaries
from tests.tiny_models import tiny_model, tiny_tokenizer
from tests.variants import CHANGES

NATS = 1e-4
SHOTS = "Q: is ice cold? A: yes\n"  # what documents of a task begin with
CONTEXT = 128

# One document a list, of contexts with their continuations.
DOCUMENTS = {
    "choices": [
        [("The tea is", " cold"), ("The tea is", " hot and sweet"), ("The tea is", " gone")],
        [("A longer beginning of a text", "."), ("A longer beginning of a text", ", to be sure"), ("A longer", " one")],
        [("x", " y"), ("x", " yes")],
    ],
    "one-token choices after shots": [
        [(f"{SHOTS}Q: is it {word}? A:", letter) for letter in ("y", "n", "m")] for word in ("hot", "very dry", "so")
    ],
    "choices after shots": [
        [(f"{SHOTS}Q: is it {word}? A:", answer) for answer in (" yes", " no", " who knows")]
        for word in ("hot", "warm", "quite dry", "a very long word to say")
    ],
    "endings of two contexts": [
        [("Ann met Amy since Ann", " was here."), ("Ann met Amy since Amy", " was here.")],
        [("", "No context at all"), ("", "No context for this"), ("", "<|endoftext|>Begun")],
        [("Spaces at the end  ", "of a context"), ("   ", "only spaces")],
    ],
    "too long": [[("a" * 200, " b"), ("a" * 200, " c and more")], [("b" * 126, "cd"), ("b" * 120, "c" * 127)]],
}
STOCK = {
    "llama": LlamaConfig(num_key_value_heads=2),
    "gpt2": GPT2Config(n_layer=2, n_head=4, n_embd=32, n_positions=CONTEXT),
    "gemma2 with soft caps": Gemma2Config(
        num_key_value_heads=2, head_dim=8, sliding_window=8, final_logit_softcapping=2.0, attn_logit_softcapping=5.0
    ),
    "granite with divided logits": GraniteConfig(num_key_value_heads=2, logits_scaling=3.0),
    "cohere with multiplied logits": CohereConfig(num_attention_heads=4, num_key_value_heads=2, logit_scale=0.25),
    "opt": OPTConfig(word_embed_proj_dim=32, ffn_dim=64),
}


def build_stock_model(name: str) -> torch.nn.Module:
    config = STOCK[name]
    sizes = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "max_position_embeddings": CONTEXT, "initializer_range": 0.2}
    tokens = {"pad_token_id": 256, "bos_token_id": 257, "eos_token_id": 257}
    for key, value in (sizes | tokens).items():
        if key != "intermediate_size" or hasattr(config, key):
            setattr(config, key, value)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def make_requests(documents: list) -> list[Instance]:
    return [
        Instance("loglikelihood", {}, pair, place, ("task", number, 1))
        for number, document in enumerate(documents)
        for place, pair in enumerate(document)
    ]


def check_equal(ours: list, theirs: list) -> None:
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    differences = [abs(our - their) for (our, _), (their, _) in zip(ours, theirs, strict=True)]
    assert max(differences) < NATS, differences


def score_all(lm: HFLM, sets: list[list]) -> list:
    """Log-likelihoods of each set of documents, one call each: a call has the documents of one task."""
    return [score for documents in sets for score in lm.loglikelihood(make_requests(documents), disable_tqdm=True)]


def keep_scorable(documents: list) -> list:
    """Without a context of spaces alone, which HFLM does not take."""
    return [[pair for pair in document if not pair[0].isspace()] for document in documents]


@pytest.mark.parametrize("variant", CHANGES)
def test_every_variant_of_our_model_scores_as_hflm_does(variant, capfd):
    model, tokenizer = tiny_model(**CHANGES[variant]), tiny_tokenizer()
    sets = [keep_scorable(documents) for documents in DOCUMENTS.values()]
    theirs = score_all(HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4), sets)
    lm = SharedPrefixLM(model, tokenizer)
    check_equal(score_all(lm, sets), theirs)
    assert lm.can_share == (variant != "rope_dynamic"), capfd.readouterr().out


@pytest.mark.parametrize("batch_size", [1, 16])
@pytest.mark.parametrize("name", STOCK)
def test_stock_classes_score_as_hflm_does_at_any_batch_size(name, batch_size):
    model, tokenizer = build_stock_model(name), tiny_tokenizer()
    sets = [keep_scorable(documents) for documents in DOCUMENTS.values()]
    lm = SharedPrefixLM(model, tokenizer, batch_size)
    assert lm.can_share
    check_equal(score_all(lm, sets), score_all(HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1), sets))


def test_a_beginning_that_the_tokenizer_adds_is_scored_as_hflm_does():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    tokenizer.bos_token = "<|im_start|>"
    set_boundaries(tokenizer.backend_tokenizer, ["<|im_start|>"], [])
    sets = [keep_scorable(documents) for documents in DOCUMENTS.values()]
    sets.append([[("<|im_start|>A begun text", " goes on"), ("<|im_start|>A begun text", " ends")]])
    check_equal(
        score_all(SharedPrefixLM(model, tokenizer), sets),
        score_all(HFLM(pretrained=model, tokenizer=tokenizer), sets),
    )


def test_whole_texts_are_scored_window_by_window_as_hflm_does():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    requests = [
        Instance("loglikelihood_rolling", {}, (text,), 0) for text in ("short", "longer than it " * 25, "b" * 128)
    ]
    ours = SharedPrefixLM(model, tokenizer).loglikelihood_rolling(requests)
    theirs = HFLM(pretrained=model, tokenizer=tokenizer).loglikelihood_rolling(requests, disable_tqdm=True)
    assert ours == pytest.approx(theirs, abs=NATS * 4, rel=1e-6)


class ShiftedHead(LlamaForCausalLM):
    """A class that does with its logits what nobody foresaw."""

    def forward(self, *arguments, **keywords):
        output = super().forward(*arguments, **keywords)
        output.logits = output.logits + torch.linspace(0, 3, output.logits.shape[-1])
        return output


def test_a_class_whose_head_cannot_be_taken_apart_goes_the_ordinary_way_and_says_so(capfd):
    plain, tokenizer = build_stock_model("llama"), tiny_tokenizer()
    model = ShiftedHead(plain.config).eval()
    lm = SharedPrefixLM(model, tokenizer)
    assert not lm.runs_in_parts
    assert "ShiftedHead cannot be run with the head apart from the body" in capfd.readouterr().out
    sets = [keep_scorable(documents) for documents in DOCUMENTS.values()]
    check_equal(score_all(lm, sets), score_all(HFLM(pretrained=model, tokenizer=tokenizer), sets))


def test_the_head_is_applied_to_scored_positions_only_and_in_chunks(monkeypatch):
    model, tokenizer = tiny_model(), tiny_tokenizer()
    lm = SharedPrefixLM(model, tokenizer)
    sizes = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0])))
    monkeypatch.setitem(shared_prefix.LOGITS_AT_ONCE, "cpu", 8 * 320)
    documents = DOCUMENTS["choices after shots"]
    lm.loglikelihood(make_requests(documents))
    tokens_scored = sum(len(continuation) for document in documents for _, continuation in document)
    assert max(sizes) == 8
    assert sum(sizes) == tokens_scored  # a byte is a token, and no token of a context is scored


def test_what_documents_share_runs_once(monkeypatch):
    model, tokenizer = tiny_model(), tiny_tokenizer()
    lm = SharedPrefixLM(model, tokenizer)
    read = []
    model.model.embed_tokens.register_forward_hook(lambda module, inputs, output: read.append(inputs[0].numel()))
    lm.loglikelihood(make_requests(DOCUMENTS["one-token choices after shots"]))
    stem = len(f"{SHOTS}Q: is it ")
    rest = len("very dry? A:")
    assert read[0] == stem
    assert sum(read) == stem + 3 * rest  # one row for the three choices of a document; the shorter are padded


def test_sequences_that_cannot_be_scored_say_why():
    lm = SharedPrefixLM(tiny_model(), tiny_tokenizer())
    [empty, long, fine] = lm.encode_pairs([("a", ""), ("a", "b" * 129), ("a", "b" * 128)])
    assert "has no token of its own" in empty.problem
    assert "has 129 tokens; the model reads 128" in long.problem
    assert not fine.problem and not fine.is_truncated
    assert lm.encode_pairs([("aa", "b" * 128)])[0].is_truncated
    with pytest.raises(NotRunError, match="no token of its own"):
        lm.loglikelihood(make_requests([[("a", "")]]))


def test_plan_batches_keeps_documents_whole_and_within_a_pass():
    documents = [[Scored(tuple(range(length)), 2), Scored((*range(length), 7), 3)] for length in range(20, 120, 3)]
    plan = plan_batches(documents, None, "cpu", can_share=True)
    assert plan.stem == tuple(range(17))
    assert sorted(place for batch in plan.batches for place in batch) == list(range(len(documents)))
    lengths = [[len(documents[place][0].tokens) for place in batch] for batch in plan.batches]
    assert all(max(batch) - min(batch) <= shared_prefix.MAX_CUT_TOKENS for batch in lengths)
    assert [max(batch) for batch in lengths] == sorted(map(max, lengths), reverse=True)
    assert all(len(batch) <= 3 for batch in plan_batches(documents, 3, "cpu", True).batches)
    assert plan_batches(documents, None, "cpu", can_share=False).stem == ()


def test_group_by_length_pads_little_and_makes_no_tiny_pass():
    lengths = [40, 10, 38, 33, 20, 3, 2, 18]
    groups = group_by_length(lengths, "cpu")
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    assert [[lengths[row] for row in group] for group in groups] == [[40, 38, 33], [20, 18], [10, 3, 2]]


def test_common_prefix_is_what_all_sequences_begin_with():
    assert common_prefix([(1, 2, 3), (1, 2), (1, 2, 4)]) == 2
    assert common_prefix([(1, 2), (1, 2)]) == 2
    assert common_prefix([(1,), (2,)]) == 0
    assert common_prefix([]) == 0


@pytest.mark.parametrize("batch_size", [1, 4])
def test_generate_until_writes_what_hflm_writes(batch_size):
    model, tokenizer = tiny_model(), tiny_tokenizer()
    set_stop_tokens(model, tokenizer)
    prompts = ["The tea", "A much longer prompt than the other", "x", "b" * 150]
    free = [Instance("generate_until", {}, (prompt, {"until": [], "max_gen_toks": 24}), 0) for prompt in prompts]
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1)
    lm = SharedPrefixLM(model, tokenizer, batch_size)
    unstopped = theirs.generate_until(free, disable_tqdm=True)
    assert lm.generate_until(free) == unstopped

    stop = next(text[3:5] for text in unstopped if len(text) > 6)
    settings = {"until": [stop, "\n"], "max_gen_toks": 24, "do_sample": False, "temperature": 0.0}
    stopped = [Instance("generate_until", {}, (prompt, dict(settings)), 0) for prompt in prompts]
    texts = lm.generate_until(stopped)
    assert texts == theirs.generate_until(stopped, disable_tqdm=True)
    assert any(len(text) < len(long) for text, long in zip(texts, unstopped, strict=True))


def test_generation_without_room_for_a_prompt_names_the_setting():
    lm = SharedPrefixLM(tiny_model(), tiny_tokenizer())
    requests = [Instance("generate_until", {}, ("a", {"until": []}), 0)]  # the harness generates 256 tokens
    with pytest.raises(
        NotRunError, match=r"256 tokens leaves no room .* context of 128; set gen_kwargs: .max_gen_toks"
    ):
        lm.generate_until(requests)


def test_sampled_generation_is_the_same_each_time():
    lm = SharedPrefixLM(tiny_model(), tiny_tokenizer())
    settings = {"until": [], "max_gen_toks": 16, "do_sample": True, "temperature": 1.0}
    requests = [Instance("generate_until", {}, (prompt, settings), 0) for prompt in ("The tea", "x")]
    texts = lm.generate_until(requests)
    torch.manual_seed(99)
    assert lm.generate_until(requests) == texts


def test_log_likelihoods_are_finite():
    lm = SharedPrefixLM(tiny_model(), tiny_tokenizer())
    scores = lm.loglikelihood(make_requests(DOCUMENTS["endings of two contexts"]))
    assert all(math.isfinite(score) for score, _ in scores)
