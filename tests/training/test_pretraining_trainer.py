"""Label smoothing and z-loss in training: in the gradient, beside the loss in the log, in every kind of model."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset
from transformers import (
    AlbertConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    T5Config,
    Trainer,
    TrainingArguments,
)

from hf_llm.core.errors import UserError
from hf_llm.training.pretraining_trainer import PretrainingTrainer
from tests.tiny_models import tiny_model

TERMS = {"label_smoothing_factor": 0.1, "z_loss": 1e-2}


class Rows(Dataset):
    """Rows of random tokens; of some rows only a part has labels."""

    def __init__(self, count: int = 32, width: int = 12):
        self.tokens = torch.randint(0, 64, (count, width), generator=torch.Generator().manual_seed(1))

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        labels = self.tokens[index].clone()
        labels[: index % 5] = -100
        return {"input_ids": self.tokens[index], "labels": labels}


def stock_model(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "bos_token_id": None, "eos_token_id": None}
    if kind == "t5":
        shape = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "dropout_rate": 0}
        return AutoModelForSeq2SeqLM.from_config(T5Config(**shape, **sizes, decoder_start_token_id=0, pad_token_id=0))
    if kind == "bert":
        shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        config = BertConfig(**shape, **sizes, hidden_dropout_prob=0, attention_probs_dropout_prob=0)
        return AutoModelForMaskedLM.from_config(config)
    if kind == "gpt2":
        config = GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, embd_pdrop=0, resid_pdrop=0, **sizes)
    else:
        config = LlamaConfig(
            hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, pad_token_id=0, **sizes
        )
    config.attn_pdrop = 0
    return AutoModelForCausalLM.from_config(config)


def model_of(kind: str) -> torch.nn.Module:
    return tiny_model(vocab_size=64, pad_token_id=0, eos_token_id=1) if kind == "hf_llm" else stock_model(kind)


def trained(folder, kind: str, accumulation: int = 1, z_loss: float = 0.0, max_steps: int = 3, **settings) -> Trainer:
    arguments = TrainingArguments(
        folder,
        use_cpu=True,
        max_steps=max_steps,
        logging_steps=1,
        per_device_train_batch_size=8 // accumulation,
        gradient_accumulation_steps=accumulation,
        learning_rate=1e-2,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        **settings,
    )
    trainer = PretrainingTrainer(model_of(kind), arguments, train_dataset=Rows(), eval_dataset=Rows(8), z_loss=z_loss)
    trainer.train()
    return trainer


def logged(trainer: Trainer, key: str) -> list[float]:
    return [entry[key] for entry in trainer.state.log_history if key in entry]


@pytest.mark.parametrize("kind", ["hf_llm", "llama", "gpt2"])
def test_the_objective_is_logged_beside_the_plain_loss(tmp_path, kind):
    trainer = trained(tmp_path, kind, **TERMS)
    first = next(iter(trainer.get_train_dataloader()))
    model = model_of(kind).train()
    logits, labels = model(input_ids=first["input_ids"]).logits[:, :-1].flatten(0, 1), first["labels"][:, 1:].flatten()
    plain = F.cross_entropy(logits, labels)
    z = torch.logsumexp(logits, dim=-1)[labels != -100].square().mean()
    objective = F.cross_entropy(logits, labels, label_smoothing=0.1) + 1e-2 * z
    objective.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
    assert logged(trainer, "loss")[0] == pytest.approx(plain.item(), rel=1e-5)
    assert logged(trainer, "objective")[0] == pytest.approx(objective.item(), rel=1e-5)
    assert logged(trainer, "grad_norm")[0] == pytest.approx(norm.item(), rel=1e-4)


@pytest.mark.parametrize("terms", [{}, TERMS], ids=["plain", "terms"])
@pytest.mark.parametrize("kind", ["hf_llm", "llama", "gpt2", "bert", "t5"])
def test_accumulation_changes_nothing(tmp_path, kind, terms):
    whole, parts = (trained(tmp_path, kind, accumulation, **terms) for accumulation in (1, 4))
    for key in ("loss", "grad_norm", *(["objective"] if terms else [])):
        assert len(logged(whole, key)) == 3
        assert logged(parts, key) == pytest.approx(logged(whole, key), rel=1e-4)


def test_the_evaluation_is_of_the_plain_loss(tmp_path):
    trainer = trained(tmp_path, "hf_llm", **TERMS)
    evaluated = trainer.evaluate()["eval_loss"]
    batch = torch.utils.data.default_collate(list(Rows(8)))
    with torch.no_grad():
        assert evaluated == pytest.approx(trainer.model(**batch).loss.item(), rel=1e-5)


def test_without_terms_it_is_trainer_itself(tmp_path):
    trainer = trained(tmp_path, "hf_llm")
    assert logged(trainer, "objective") == []
    theirs = Trainer(model_of("hf_llm"), trainer.args, train_dataset=Rows())
    theirs.train()
    assert logged(trainer, "loss") == logged(theirs, "loss")
    assert logged(trainer, "grad_norm") == logged(theirs, "grad_norm")


def test_sequence_parallelism_is_refused(tmp_path, monkeypatch):
    arguments = TrainingArguments(tmp_path, use_cpu=True, report_to="none")
    monkeypatch.setenv("ACCELERATE_USE_PARALLELISM_CONFIG", "true")
    monkeypatch.setenv("PARALLELISM_CONFIG_SP_SIZE", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="sequence parallelism"):
        PretrainingTrainer(model_of("hf_llm"), arguments, z_loss=1e-4)


def test_a_model_without_activation_checkpointing_is_named(tmp_path):
    sizes = {"embedding_size": 8, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    model = AutoModelForMaskedLM.from_config(AlbertConfig(vocab_size=64, **sizes))
    arguments = TrainingArguments(tmp_path, activation_checkpointing=True, use_cpu=True, report_to="none")
    with pytest.raises(UserError, match="AlbertForMaskedLM does not support it"):
        PretrainingTrainer(model, arguments)


def test_experts_of_a_stock_model_are_balanced_and_the_loss_logged_is_that_of_the_tokens(tmp_path, monkeypatch):
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = MixtralConfig(**shape, num_key_value_heads=2, vocab_size=64, num_local_experts=4, pad_token_id=0)
    gradients, losses = [], []
    for coefficient in (0.0, 1.0):
        config.router_aux_loss_coef = coefficient
        torch.manual_seed(0)
        monkeypatch.setitem(globals(), "model_of", lambda _: AutoModelForCausalLM.from_config(config))
        trainer = trained(tmp_path, "mixtral", optim="sgd", lr_scheduler_type="constant")
        losses.append(logged(trainer, "loss")[0])
        gradients.append(trainer.model.model.layers[0].mlp.gate.weight.detach())
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert not torch.allclose(*gradients, atol=1e-6)


def train_with_dropout(folder, workers: int = 0, **settings) -> dict[str, torch.Tensor]:
    """The weights after six steps of a model with dropout."""
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "bos_token_id": None, "eos_token_id": None}
    model = AutoModelForCausalLM.from_config(GPT2Config(vocab_size=64, resid_pdrop=0.3, attn_pdrop=0.3, **sizes))
    arguments = TrainingArguments(
        folder,
        use_cpu=True,
        max_steps=6,
        per_device_train_batch_size=8,
        per_device_eval_batch_size=3,
        learning_rate=1e-2,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        dataloader_num_workers=workers,
        **settings,
    )
    trainer = PretrainingTrainer(model, arguments, train_dataset=Rows(), eval_dataset=Rows(8))
    trainer.train()
    return model.state_dict()


@pytest.mark.parametrize("workers", [0, 1])
def test_with_dropout_the_weights_do_not_depend_on_how_often_one_evaluates(tmp_path, workers):
    never = train_with_dropout(tmp_path, workers)
    for settings in (
        {"eval_strategy": "steps", "eval_steps": 1, "eval_on_start": True},
        {"eval_strategy": "steps", "eval_steps": 4},
        {"eval_strategy": "epoch"},
    ):
        weights = train_with_dropout(tmp_path, workers, **settings)
        assert all(torch.equal(weights[name], never[name]) for name in never), settings
