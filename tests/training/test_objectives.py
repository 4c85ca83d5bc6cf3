import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, TrainerCallback, TrainingArguments

from hf_llm.core.errors import UserError
from hf_llm.data.tokens.corruption import CorruptedWindows, TokenMasking, regular_token_mask
from hf_llm.training.objectives import (
    Objective,
    accuracy_arguments,
    add_epoch_callback,
    corrupt_windows,
    resolve_objective,
)
from hf_llm.training.pretraining_trainer import PretrainingTrainer
from tests.tiny_models import tiny_tokenizer


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({}, Objective("causal")),
        ({"model_type": "llama"}, Objective("causal")),
        ({"model_type": "mixtral"}, Objective("causal")),
        ({"model_type": "bert"}, Objective("masked", 0.15)),
        ({"model_type": "albert"}, Objective("masked", 0.15)),
        ({"model_type": "distilbert"}, Objective("masked", 0.15)),
        ({"model_type": "modernbert"}, Objective("masked", 0.3)),
        ({"model_type": "bert", "is_decoder": True}, Objective("causal")),
        ({"model_type": "t5"}, Objective("span_corruption", 0.15, 3.0)),
        ({"model_type": "bart"}, Objective("span_corruption", 0.15, 3.0)),
    ],
)
def test_the_objective_follows_from_the_model_type(model, expected):
    assert resolve_objective({"model": model}) == expected
    assert resolve_objective({"model": model, "pretrain": {"objective": expected.kind}}) == expected


def test_a_section_changes_what_the_papers_say():
    tree = {"model": {"model_type": "bert"}, "pretrain": {"objective": {"share": 0.4}}}
    assert resolve_objective(tree) == Objective("masked", 0.4)
    tree = {"model": {"model_type": "t5"}, "pretrain": {"objective": {"kind": "span_corruption", "mean_span": 8}}}
    assert resolve_objective(tree) == Objective("span_corruption", 0.15, 8)


@pytest.mark.parametrize(
    ("model", "objective", "words"),
    [
        ({}, "masked", "a hf_llm cannot be trained on masked, only on causal; .* bert"),
        ({"model_type": "llama"}, "span_corruption", "a llama cannot be trained on span_corruption.* t5"),
        ({"model_type": "t5"}, "masked", "a t5 cannot be trained on masked"),
        ({"model_type": "t5"}, "causal", "a t5 cannot be trained on causal.*hf_llm, llama"),
        ({"model_type": "bert"}, "causal", "bert sees the tokens after each token; also write model.is_decoder: true"),
        ({"model_type": "bert"}, "mask", "'mask' is unknown; one of causal, masked, span_corruption"),
        ({"model_type": "bert"}, {"share": 1.5}, "share is 1.5"),
        ({"model_type": "bert"}, {"mean_span": 3}, "`mean_span` belongs to span_corruption"),
        ({"model_type": "t5"}, {"mean_span": 0.5}, "mean_span is 0.5"),
        ({}, {"share": 0.2}, "`share` belongs to masked"),
        ({}, {"portion": 0.2}, "portion"),
        ({"model_type": "brt"}, "masked", "did you mean bart or bert"),
    ],
)
def test_what_a_model_cannot_be_trained_on_is_an_error_that_says_what_can(model, objective, words):
    with pytest.raises(UserError, match=words):
        resolve_objective({"model": model, "pretrain": {"objective": objective}})


def test_a_tokenizer_gets_as_many_sentinels_as_the_context_needs():
    assert Objective("causal").tokens(512) == []
    assert Objective("masked", 0.15).tokens(None) == ["<|mask|>"]
    objective = Objective("span_corruption", 0.15, 3.0)
    assert len(objective.tokens(None)) == len(objective.tokens(512)) == 100
    assert len(objective.tokens(4096)) >= 205


def test_words_are_all_but_the_special_tokens():
    tokenizer = tiny_tokenizer()
    words = regular_token_mask(tokenizer)
    assert len(words) == len(tokenizer) == 260
    assert not words[tokenizer.all_special_ids].any() and words.sum() == 260 - len(set(tokenizer.all_special_ids))


class Seen(TrainerCallback):
    """Every input that the model has been given in training."""

    def __init__(self, model):
        self.rows = []
        model.register_forward_pre_hook(self.note, with_kwargs=True)

    def note(self, model, arguments, inputs):
        if model.training:
            self.rows.append(inputs["input_ids"].clone())


class Rows(torch.utils.data.Dataset):
    length = 32

    def __len__(self):
        return 12

    def __getitem__(self, i):
        ids = torch.arange(i, i + self.length) % 50 + 8
        return {"input_ids": ids, "labels": ids}


def trained(folder, workers, resume=False, dropout=0.1, **arguments):
    """What a model saw in two epochs and a half of three steps each, saved after each step, and its trainer."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    sizes |= {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    model = BertForMaskedLM(BertConfig(vocab_size=64, max_position_embeddings=32, **sizes))
    seen = Seen(model)
    args = TrainingArguments(
        str(folder),
        max_steps=8,
        save_steps=1,
        dataloader_num_workers=workers,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        **{"per_device_train_batch_size": 4, **arguments},
    )
    words = torch.arange(64).numpy() >= 8
    windows = corrupt_windows(Rows(), TokenMasking(4, words), seed=5)
    trainer = PretrainingTrainer(
        model, args, train_dataset=windows, eval_dataset=windows, **accuracy_arguments(Objective("masked", 0.15))
    )
    add_epoch_callback(trainer)
    trainer.train(resume_from_checkpoint=resume)
    return seen.rows, trainer


def test_a_resumed_training_takes_the_same_tokens_out_with_any_number_of_workers(tmp_path):
    whole, trainer = trained(tmp_path / "run", workers=0)
    assert len(whole) == 8
    assert isinstance(trainer.train_dataset, CorruptedWindows) and int(trainer.train_dataset._epoch) == 2
    epochs = [torch.cat(whole[start : start + 3]) for start in (0, 3)]
    sort = [epoch[epoch[:, 1:].sum(1).argsort()] for epoch in epochs]
    assert not torch.equal(*sort)
    for step in (2, 3, 4):  # amid an epoch, at its end, at the start of the next
        rest, again = trained(
            tmp_path / "run", workers=2 * (step == 4), resume=str(tmp_path / f"run/checkpoint-{step}")
        )
        assert len(rest) == 8 - step
        assert all(torch.equal(one, other) for one, other in zip(rest, whole[step:], strict=True)), step
        for one, other in zip(again.model.parameters(), trainer.model.parameters(), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("micro", [2, 1])
def test_accumulation_does_not_change_the_losses(tmp_path, micro):
    settings = {"workers": 0, "dropout": 0.0, "logging_steps": 1}
    _, whole = trained(tmp_path / "whole", **settings)
    settings |= {"per_device_train_batch_size": micro, "gradient_accumulation_steps": 4 // micro}
    _, parts = trained(tmp_path / "parts", **settings)
    one, other = ([row["loss"] for row in each.state.log_history if "loss" in row] for each in (whole, parts))
    assert len(one) == 8 and other == pytest.approx(one, rel=1e-4)


def test_an_evaluation_hides_the_same_tokens_each_time_and_counts_those_found(tmp_path):
    _, trainer = trained(tmp_path, workers=0)
    first, second = trainer.evaluate(), trainer.evaluate()
    assert first["eval_loss"] == second["eval_loss"]
    assert 0 <= first["eval_masked_accuracy"] == second["eval_masked_accuracy"] <= 1
    trainer.model.cls.predictions.bias.data[:] = 0
    trainer.model.cls.predictions.decoder.bias.data[:] = 0
    trainer.model.cls.predictions.decoder.bias.data[20] = 1e6  # always the same word
    labels = torch.cat([trainer.eval_dataset[i]["labels"] for i in range(12)])
    share = (labels == 20).sum() / (labels != -100).sum()
    assert trainer.evaluate()["eval_masked_accuracy"] == pytest.approx(share.item())
