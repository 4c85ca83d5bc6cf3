import math
import subprocess
import sys

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    StaticCache,
    Trainer,
    TrainingArguments,
)

from tests.tiny_models import tiny_config, tiny_model


def some_tokens(rows: int = 2, length: int = 24) -> torch.Tensor:
    return torch.randint(0, 256, (rows, length), generator=torch.Generator().manual_seed(1))


def assert_near(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_a_step_of_training_moves_every_parameter():
    model, tokens = tiny_model(tie_word_embeddings=False).train(), some_tokens()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    model(tokens, labels=tokens).loss.backward()
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    still = [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])]
    assert not still


def test_a_new_model_starts_at_the_loss_of_guessing():
    torch.manual_seed(0)
    model, tokens = AutoModelForCausalLM.from_config(tiny_config()), some_tokens()
    assert abs(model(tokens, labels=tokens).loss.item() - math.log(320)) < 0.1


def test_projections_into_the_residual_stream_start_smaller():
    torch.manual_seed(0)
    layer = AutoModelForCausalLM.from_config(tiny_config(hidden_size=256, num_hidden_layers=8)).model.layers[3]
    assert layer.self_attn.q_proj.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert layer.self_attn.o_proj.weight.std().item() == pytest.approx(0.005, rel=0.05)
    assert layer.mlp.down_proj.weight.std().item() == pytest.approx(0.005, rel=0.05)


@pytest.mark.parametrize("cache_of", ["dynamic", "static"])
@torch.no_grad()
def test_a_cache_changes_no_logits(cache_of):
    model, tokens = tiny_model(), some_tokens()
    full = model(tokens).logits
    cache = StaticCache(config=model.config, max_cache_len=32) if cache_of == "static" else None
    first = model(tokens[:, :10], past_key_values=cache, use_cache=True)
    pieces, cache = [first.logits], first.past_key_values
    for i in range(10, tokens.shape[1]):
        pieces.append(model(tokens[:, i : i + 1], past_key_values=cache, use_cache=True).logits)
    assert_near(torch.cat(pieces, dim=1), full)


@pytest.mark.parametrize("cache_implementation", [None, "static"])
def test_greedy_generation_is_the_same_with_and_without_a_cache(cache_implementation):
    model, tokens = tiny_model(), some_tokens()
    greedy = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "attention_mask": torch.ones_like(tokens)}
    without = model.generate(tokens, use_cache=False, **greedy)
    model.generation_config.compile_config = None
    cached = model.generate(tokens, cache_implementation=cache_implementation, disable_compile=True, **greedy)
    assert torch.equal(cached, without)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_padding_on_the_left_changes_no_logits(attention):
    model, tokens = tiny_model(attention), some_tokens(1, 12)
    padding = torch.full((1, 5), 256)
    padded = torch.cat([padding, tokens], dim=1)
    mask = (padded != 256).long()
    assert_near(model(padded, attention_mask=mask).logits[:, 5:], model(tokens).logits)


@torch.no_grad()
def test_both_attention_kernels_give_the_same_logits():
    tokens = some_tokens()
    assert_near(tiny_model("sdpa")(tokens).logits, tiny_model("eager")(tokens).logits)


@pytest.mark.parametrize("use_cache", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_documents_packed_into_one_row_do_not_see_each_other(attention, use_cache):
    model, tokens = tiny_model(attention), some_tokens(1, 20)
    positions = torch.cat([torch.arange(8), torch.arange(12)])[None]
    packed = model(tokens, position_ids=positions, use_cache=use_cache).logits
    assert_near(packed[:, 8:], model(tokens[:, 8:]).logits)
    changed = tokens.clone()
    changed[:, :8] = (changed[:, :8] + 1) % 256
    assert torch.equal(model(changed, position_ids=positions, use_cache=use_cache).logits[:, 8:], packed[:, 8:])


def test_activation_checkpointing_changes_no_gradient():
    tokens, gradients = some_tokens(), []
    for checkpointing in (False, True):
        model = tiny_model().train()
        if checkpointing:
            model.activation_checkpointing_enable()
        model(tokens, labels=tokens).loss.backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    assert_near(*gradients)


def test_hidden_states_and_attentions_can_be_asked_for():
    outputs = tiny_model("eager")(some_tokens(), output_hidden_states=True, output_attentions=True)
    assert [state.shape for state in outputs.hidden_states] == [(2, 24, 32)] * 3
    assert [weights.shape for weights in outputs.attentions] == [(2, 4, 24, 24)] * 2


def test_a_model_loads_bit_for_bit_as_it_was_saved(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert {name: t.tolist() for name, t in loaded.state_dict().items()} == {
        name: t.tolist() for name, t in model.state_dict().items()
    }
    assert torch.equal(loaded.model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq)


@pytest.mark.parametrize("tied", [True, False])
def test_embedding_and_head_share_their_storage_after_loading_where_they_are_tied(tmp_path, tied):
    tiny_model(tie_word_embeddings=tied).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert (model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()) is tied


@pytest.mark.parametrize("head", [AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification])
@torch.no_grad()
def test_every_head_opens_a_causal_checkpoint(tmp_path, head):
    base, tokens = tiny_model(), some_tokens()
    base.save_pretrained(tmp_path)
    model = head.from_pretrained(tmp_path, dtype=torch.float32).eval()
    backbone = model if head is AutoModel else model.model
    assert torch.equal(backbone(tokens).last_hidden_state, base.model(tokens).last_hidden_state)


@torch.no_grad()
def test_a_text_scores_the_same_alone_and_padded_in_a_batch():
    torch.manual_seed(0)
    config = tiny_config(initializer_range=0.2)
    config.num_labels = 1
    model = AutoModelForSequenceClassification.from_config(config).eval()
    tokens = some_tokens(1, 9)
    alone = model(tokens).logits
    padding = torch.full((1, 4), 256)
    for batch in (torch.cat([tokens, padding], 1), torch.cat([padding, tokens], 1)):
        batch = torch.cat([batch, some_tokens(1, 13)])
        assert_near(model(batch, attention_mask=(batch != 256).long()).logits[:1], alone)


def test_the_folder_opens_where_hf_llm_is_not_installed(tmp_path):
    folder, tokens = tmp_path / "model", some_tokens(1, 8)
    model = tiny_model()
    model.save_pretrained(folder)
    script = """
import sys
sys.modules["hf_llm"] = None  # an import of it fails
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoModel
folder, tokens = sys.argv[1], torch.tensor([[int(t) for t in sys.argv[2].split()]])
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
torch.save(model(tokens).logits.detach(), folder + "/logits.pt")
assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
model.generate(tokens, max_new_tokens=2, do_sample=False)
scorer = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True, num_labels=1)
assert scorer(tokens).logits.shape == (1, 1)
AutoModel.from_pretrained(folder, trust_remote_code=True)
model.save_pretrained(folder + "/again")
AutoModelForCausalLM.from_pretrained(folder + "/again", trust_remote_code=True)
try:
    import hf_llm.core.errors
except ImportError:
    print("not importable")
"""
    process = subprocess.run(
        [sys.executable, "-c", script, str(folder), " ".join(map(str, tokens[0].tolist()))],
        env={"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert "not importable" in process.stdout
    assert torch.equal(torch.load(folder / "logits.pt"), model(tokens).logits)


def test_no_norm_is_decayed_and_every_matrix_is(tmp_path):
    model = tiny_model()
    trainer = Trainer(model, TrainingArguments(str(tmp_path), weight_decay=0.1, use_cpu=True, report_to="none"))
    groups = trainer.create_optimizer().param_groups
    decayed = {id(parameter) for group in groups if group["weight_decay"] for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        assert (id(parameter) in decayed) is (parameter.ndim == 2), name


def trained_weights(folder, accumulation: int) -> torch.Tensor:
    """The weights after three steps of a real Trainer on rows of very different numbers of labels."""
    rows = [{"input_ids": row, "labels": row.clone()} for row in some_tokens(24, 16)]
    for number, row in enumerate(rows):
        row["labels"][: number % 15] = -100
    arguments = TrainingArguments(
        str(folder / str(accumulation)),
        per_device_train_batch_size=8 // accumulation,
        gradient_accumulation_steps=accumulation,
        max_steps=3,
        learning_rate=0.1,
        optim="sgd",
        max_grad_norm=0.0,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = Trainer(tiny_model(), arguments, train_dataset=rows, eval_dataset=rows[:4])
    trainer.train()
    assert trainer.evaluate()["eval_loss"] > 0
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


def test_one_batch_and_four_accumulated_ones_learn_the_same(tmp_path):
    assert_near(trained_weights(tmp_path, 1), trained_weights(tmp_path, 4))


def test_all_linear_finds_the_layers_and_merging_keeps_the_logits():
    from peft import LoraConfig, get_peft_model

    tokens = some_tokens()
    model = get_peft_model(tiny_model(), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    adapted_layers = {name.split(".")[-2] for name, _ in model.named_modules() if name.endswith("lora_A")}
    assert adapted_layers == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted = model(tokens).logits
    model(tokens, labels=tokens).loss.backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if "lora" in name)
    assert_near(model.merge_and_unload()(tokens).logits, adapted)
