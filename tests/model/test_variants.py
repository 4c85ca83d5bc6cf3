"""Every switch of the model, under every way a model is used."""

import copy
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, StaticCache
from transformers.utils import is_flash_attn_2_available
from trl.trainer.utils import add_fused_lm_head

from tests.tiny_models import tiny_config, tiny_model
from tests.variants import CHANGES, VARIANTS

PAD = 256
GREEDY = {"max_new_tokens": 10, "do_sample": False, "eos_token_id": None, "pad_token_id": PAD}


def some_tokens(rows: int = 2, length: int = 20) -> torch.Tensor:
    return torch.randint(0, 256, (rows, length), generator=torch.Generator().manual_seed(1))


def assert_near(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def steady(changes: dict) -> dict:
    """The changes without dropout, for a comparison in training mode."""
    return {key: value for key, value in changes.items() if "drop" not in key}


def gradients(model: torch.nn.Module, loss: torch.Tensor, but: str = "nothing") -> torch.Tensor:
    model.zero_grad()
    loss.backward()
    return torch.cat([parameter.grad.flatten() for name, parameter in model.named_parameters() if but not in name])


variants = pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES.keys())


@variants
def test_a_step_of_training_moves_every_parameter(changes):
    model, tokens = tiny_model(**changes).train(), some_tokens(4, 24)
    model(tokens, labels=tokens).loss.backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not still


@variants
@torch.no_grad()
def test_caches_and_padding_on_the_left_change_no_logits(changes):
    model, tokens = tiny_model(**changes), some_tokens()
    full = model(tokens).logits
    padded = torch.cat([torch.full((2, 5), PAD), tokens], dim=1)
    mask = (padded != PAD).long()
    assert_near(model(padded, attention_mask=mask).logits[:, 5:], full)
    for cache in (None, StaticCache(config=model.config, max_cache_len=40)):
        first = model(tokens[:, :9], past_key_values=cache, use_cache=True)
        pieces, cache = [first.logits], first.past_key_values
        for start, end in [(9, 12), *((i, i + 1) for i in range(12, 20))]:
            pieces.append(model(tokens[:, start:end], past_key_values=cache, use_cache=True).logits)
        assert_near(torch.cat(pieces, dim=1), full)


@variants
@torch.no_grad()
def test_a_batch_padded_on_the_left_generates_what_each_prompt_does_alone(changes):
    model, tokens = tiny_model(**changes), some_tokens(1, 12)
    short = tokens[:, :4]
    batch = torch.cat([tokens, torch.cat([torch.full((1, 8), PAD), short], dim=1)])
    mask = (batch != PAD).long()
    together = model.generate(batch, attention_mask=mask, **GREEDY)[:, 12:]
    for row, prompt in zip(together, (tokens, short), strict=True):
        uncached = model.generate(prompt, attention_mask=torch.ones_like(prompt), use_cache=False, **GREEDY)
        assert torch.equal(row, uncached[0, prompt.shape[1] :])
    static = model.generate(batch, attention_mask=mask, cache_implementation="static", disable_compile=True, **GREEDY)
    assert torch.equal(static[:, 12:], together)


@variants
@torch.no_grad()
def test_kernels_agree_and_keep_packed_documents_apart(changes):
    tokens = some_tokens(1, 20)
    positions = torch.cat([torch.arange(8), torch.arange(12)])[None]
    changed = tokens.clone()
    changed[:, :8] = (changed[:, :8] + 1) % 256
    full = []
    for attention in ("sdpa", "eager"):
        model = tiny_model(attention, **changes)
        full.append(model(tokens).logits)
        packed = model(tokens, position_ids=positions).logits
        assert_near(packed[:, 8:], model(tokens[:, 8:]).logits)
        assert_near(model(changed, position_ids=positions).logits[:, 8:], packed[:, 8:])
    assert_near(*full)


@variants
def test_recomputed_activations_give_the_same_gradients(changes):
    model, tokens = tiny_model(**steady(changes)).train(), some_tokens()
    expected = gradients(model, model(tokens, labels=tokens).loss)
    model.activation_checkpointing_enable()
    assert_near(gradients(model, model(tokens, labels=tokens).loss), expected)


@variants
def test_the_fused_head_of_trl_gives_the_same_loss_and_gradients(changes):
    model = tiny_model(**steady(changes) | {"router_aux_loss_coef": 0.0}).train()
    tokens, balanced_by_us = some_tokens(), "e_score_correction_bias"
    ours = model(tokens, labels=tokens).loss
    expected = gradients(model, ours, but=balanced_by_us)
    add_fused_lm_head(model)
    theirs = model(tokens, labels=tokens, fused_lm_head=True).loss
    assert_near(theirs, ours)
    assert_near(gradients(model, theirs, but=balanced_by_us), expected)


@variants
def test_one_batch_and_four_accumulated_ones_have_the_same_gradients(changes):
    model = tiny_model(**steady(changes) | {"router_aux_loss_coef": 0.0}).train()
    tokens = some_tokens(4, 16)
    whole = gradients(model, model(tokens, labels=tokens, num_items_in_batch=60).loss)
    parts = sum(model(row[None], labels=row[None], num_items_in_batch=60).loss for row in tokens)
    assert_near(gradients(model, parts), whole)


@variants
def test_adapters_find_their_layers_and_merging_keeps_the_logits(changes):
    from peft import LoraConfig, get_peft_model

    tokens = some_tokens()
    model = get_peft_model(tiny_model(**changes), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    adapted_layers = {name.split(".")[-2] for name, _ in model.named_modules() if name.endswith("lora_A")}
    mlp = {"up_proj", "down_proj"} | ({"gate_proj"} if changes.get("use_gated_mlp", True) else set())
    has_mlp = not changes.get("num_experts") or changes.get("n_shared_experts")
    assert adapted_layers == {"q_proj", "k_proj", "v_proj", "o_proj"} | (mlp if has_mlp else set())
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.eval()
    adapted = model(tokens).logits
    assert_near(model.merge_and_unload()(tokens).logits, adapted)


@variants
@torch.no_grad()
def test_more_tokens_and_hidden_states_can_be_asked_for(changes):
    model, tokens = tiny_model("eager", **changes), some_tokens()
    before = model(tokens, output_hidden_states=True, output_attentions=True)
    layers = model.config.num_hidden_layers
    assert len(before.hidden_states) == layers + 1 and len(before.attentions) == layers
    model.resize_token_embeddings(330)
    after = model(tokens).logits
    assert after.shape[-1] == 330
    assert_near(after[..., :320], before.logits)


@pytest.fixture(scope="module")
def reloaded(tmp_path_factory):
    """Every variant saved, then loaded in one process that has no hf_llm: name -> logits."""
    folder = tmp_path_factory.mktemp("variants")
    tokens = some_tokens()
    for name, changes in CHANGES.items():
        tiny_model(**changes).save_pretrained(folder / name)
    torch.save(tokens, folder / "tokens.pt")
    script = """
import sys
sys.modules["hf_llm"] = None  # an import of it fails
from pathlib import Path
import torch
from transformers import AutoModelForCausalLM
folder = Path(sys.argv[1])
tokens, logits = torch.load(folder / "tokens.pt"), {}
for path in sorted(path for path in folder.iterdir() if path.is_dir()):
    model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True, dtype=torch.float32).eval()
    logits[path.name] = model(tokens).logits.detach()
    model.generate(tokens, max_new_tokens=8, do_sample=False)
torch.save(logits, folder / "logits.pt")
"""
    home = {"HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", script, str(folder)]
    (folder / "home").mkdir()
    home["HF_HOME"] = str(tmp_path_factory.mktemp("home"))
    (folder / "home").rmdir()
    process = subprocess.run(command, env=home, cwd=folder, capture_output=True, text=True, check=False, timeout=600)
    assert process.returncode == 0, process.stderr
    return folder, torch.load(folder / "logits.pt")


@variants
@torch.no_grad()
def test_a_saved_model_reloads_bit_for_bit_here_and_where_hf_llm_is_not_installed(changes, reloaded, request):
    folder, logits_elsewhere = reloaded
    name = request.node.callspec.id
    model = tiny_model(**changes)
    expected = model(some_tokens()).logits
    loaded = AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32).eval()
    assert all(torch.equal(weight, loaded.state_dict()[key]) for key, weight in model.state_dict().items())
    # A matrix product of an expert's slice adds up in an order that depends on where in memory it lies.
    tolerance = 1e-6 if "num_experts" in changes else 0
    for logits in (logits_elsewhere[name], loaded(some_tokens()).logits):
        torch.testing.assert_close(logits, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("changes", "target"), VARIANTS.values(), ids=VARIANTS.keys())
def test_the_configuration_says_what_it_exports_to(changes, target):
    config = tiny_config(**changes)
    assert config.exports_to == target == config.to_dict()["exports_to"]
    assert config.export_obstacles(None if target == "not exportable" else target) or target != "not exportable"
    assert type(copy.deepcopy(config)) is type(config)


@pytest.mark.parametrize(
    ("changes", "switch"),
    [
        (CHANGES["alibi"], "positions=alibi"),
        (CHANGES["strided"], "layer_types=strided_attention"),
        (CHANGES["sinks"], "layer_types=sink_attention"),
    ],
)
def test_what_flash_attention_cannot_run_is_refused_by_name(changes, switch):
    with pytest.raises(ValueError, match=f"{switch} cannot run on flash attention"):
        tiny_model("flash_attention_2", **changes)


@pytest.mark.parametrize("name", ["alibi", "local_global", "shared_layers"])
def test_what_continuous_batching_cannot_run_is_refused_by_name(name):
    with pytest.raises(ValueError, match=r"(positions|layer_types|num_hidden_groups)=.* has no continuous batching"):
        tiny_model(**CHANGES[name]).generate_batch([[1, 2, 3]])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["default", "window_and_full", "gpt2", "no_positions", "experts", "soft_cap"])
def test_continuous_batching_generates_what_generate_does(name):
    from transformers import ContinuousBatchingConfig, GenerationConfig

    model, prompts = tiny_model(**CHANGES[name]), [list(range(1, 10)), [9, 8, 7]]
    settings = GenerationConfig(max_new_tokens=8, do_sample=False, eos_token_id=-1, pad_token_id=PAD)
    batching = ContinuousBatchingConfig(num_blocks=8, max_batch_tokens=64)
    outputs = model.generate_batch(prompts, settings, batching, warmup=False)
    for prompt, output in zip(prompts, outputs.values(), strict=True):
        alone = model.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), **GREEDY)
        assert output.generated_tokens == alone[0, len(prompt) : len(prompt) + 8].tolist()


@pytest.mark.slow
def test_flex_attention_agrees_and_keeps_packed_documents_apart():
    # The plain mask first: PyTorch 2.13 makes C++ of a window's that does not compile unless it has compiled another.
    for name in ("default", "strided", "local_global", "sinks", "window", "no_positions"):
        compare_flex(CHANGES[name], "cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["default", "alibi", "strided", "local_global", "sinks", "alibi_window"])
def test_flex_attention_agrees_on_a_gpu(name):
    compare_flex(CHANGES[name], "cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not is_flash_attn_2_available(), reason="needs a CUDA device and the flash-attn package")
@pytest.mark.parametrize("name", ["default", "multi_query", "window", "window_and_full", "learned", "no_positions"])
@torch.no_grad()
def test_flash_attention_agrees_on_a_gpu(name):
    changes = {**CHANGES[name], "hidden_size": 64, "dtype": torch.bfloat16}
    plain, flash = tiny_model(**changes).cuda(), tiny_model("flash_attention_2", **changes).cuda()
    tokens = some_tokens(1, 40).cuda()
    assert_near(flash(tokens).logits, plain(tokens).logits, 2e-2)
    positions = torch.cat([torch.arange(15), torch.arange(25)])[None].cuda()
    assert_near(flash(tokens, position_ids=positions).logits[:, 15:], plain(tokens[:, 15:]).logits, 2e-2)
    padded = torch.nn.functional.pad(tokens, (5, 0), value=PAD)
    assert_near(flash(padded, attention_mask=(padded != PAD).long()).logits[:, 5:], plain(tokens).logits, 2e-2)


@pytest.mark.slow
def test_alibi_on_flex_attention_is_refused_on_a_cpu():
    with pytest.raises(ValueError, match="positions=alibi cannot run on flex_attention on a CPU"):
        tiny_model("flex_attention", **CHANGES["alibi"])(some_tokens())


@torch.no_grad()
def compare_flex(changes: dict, device: str) -> None:
    changes = {**changes, "hidden_size": 64}  # its kernels want heads of 16 numbers or more
    plain, flex = tiny_model(**changes).to(device), tiny_model("flex_attention", **changes).to(device)
    tokens = some_tokens(2, 40).to(device)
    assert_near(flex(tokens).logits, plain(tokens).logits, 1e-4)
    positions = torch.cat([torch.arange(15), torch.arange(25)])[None].expand(2, -1).to(device)
    assert_near(flex(tokens, position_ids=positions).logits[:, 15:], plain(tokens[:, 15:]).logits, 1e-4)
    padded = torch.nn.functional.pad(tokens, (5, 0), value=PAD)
    assert_near(flex(padded, attention_mask=(padded != PAD).long()).logits[:, 5:], plain(tokens).logits, 1e-4)
    cache = flex(tokens[:, :30], use_cache=True).past_key_values
    assert_near(flex(tokens[:, 30:31], past_key_values=cache).logits[:, 0], plain(tokens).logits[:, 30], 1e-4)
