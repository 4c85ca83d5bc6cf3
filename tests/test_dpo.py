"""DPO and its variants: the loss is the paper's, the reference is the model before, and a kill costs nothing."""

import json

import pytest
import torch
from datasets import Dataset
from torch.nn.functional import logsigmoid
from trl import DPOConfig

from hf_llm.data.chat.loaders import ConversationSource, load_preferences
from hf_llm.dpo import LOSSES
from hf_llm.model.load import load_model, load_tokenizer
from hf_llm.posttraining.dpo_trainer import LoggedDPOTrainer
from hf_llm.tokenization.chat_encoding import encode_chat
from tests.aligned_recipe import Ended, chat_model, facts, history, run_stage, same_weights

BETA = 0.3


@pytest.fixture
def tuned(tiny_life, tmp_path):
    """A folder with a chat model of the tiny run."""
    return chat_model(tiny_life, tmp_path)


def pairs(count: int) -> list[dict]:
    def said(role: str, text: str) -> list[dict]:
        return [{"role": role, "content": text}]

    return [
        {
            "prompt": said("user", f"What is it, {number}?"),
            "chosen": said("assistant", "The red fox sees the river. " * (1 + number % 2)),
            "rejected": said("assistant", "no " * (3 + number % 5)),
        }
        for number in range(count)
    ]


def trainer_on(start, rows: list[dict], folder, **settings) -> LoggedDPOTrainer:
    arguments = {"max_length": 128, "precompute_ref_log_probs": True, "beta": BETA, "max_steps": 1, **settings}
    return LoggedDPOTrainer(
        load_model(start),
        args=DPOConfig(
            str(folder), use_cpu=True, bf16=False, activation_checkpointing=False, report_to="none", disable_tqdm=True,
            save_strategy="no", logging_steps=1, **arguments,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=load_tokenizer(start),
    )  # fmt: skip


def answer_log_prob(model, tokenizer, prompt: list[dict], answer: list[dict]) -> torch.Tensor:
    """Log-probability of an answer, token by token, from the logits of a forward pass without padding."""
    ids = encode_chat(tokenizer, prompt + answer)[0]
    begin = len(encode_chat(tokenizer, prompt, add_generation_prompt=True)[0])
    logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(logits[place - 1, ids[place]] for place in range(begin, len(ids)))


def plain_loss(model, reference, tokenizer, rows: list[dict]) -> torch.Tensor:
    """Equation 7 of Rafailov et al. 2023, the mean over rows."""
    losses = []
    for row in rows:
        ratios = []
        for name in ("chosen", "rejected"):
            with torch.no_grad():
                before = answer_log_prob(reference, tokenizer, row["prompt"], row[name])
            ratios.append(answer_log_prob(model, tokenizer, row["prompt"], row[name]) - before)
        losses.append(-logsigmoid(BETA * (ratios[0] - ratios[1])))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("accumulation", [1, 4])
def test_loss_and_gradient_are_those_of_the_paper(tiny_life, tmp_path, accumulation):
    start, rows = tiny_life / "runs/tiny/sft", pairs(8)
    trainer = trainer_on(
        start, rows, tmp_path, optim="sgd", learning_rate=1e-2, max_grad_norm=0,
        per_device_train_batch_size=8 // accumulation, gradient_accumulation_steps=accumulation,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.no_grad():  # away from the reference, where every loss would be log 2
        for parameter in trainer.model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    plain, reference = load_model(start), load_model(start)
    plain.load_state_dict(trainer.model.state_dict())
    trainer.train()
    loss = plain_loss(plain, reference, load_tokenizer(start), rows)
    loss.backward()
    assert abs(loss.item() - 0.6931) > 0.02
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss.item(), rel=1e-4)
    for name, parameter in trainer.model.named_parameters():
        before = plain.get_parameter(name)
        torch.testing.assert_close(parameter.data, before.data - 1e-2 * before.grad, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_variant_trains(tiny_life, tmp_path, loss):
    start = tiny_life / "runs/tiny/sft"
    trainer = trainer_on(
        start, pairs(8), tmp_path, loss_type=[loss], learning_rate=1e-2, max_steps=2, label_smoothing=1e-3
    )
    trainer.train()
    before = dict(load_model(start).named_parameters())
    assert all(torch.isfinite(torch.tensor(entry["loss"])) for entry in trainer.state.log_history if "loss" in entry)
    assert all((parameter != before[name]).any() for name, parameter in trainer.model.named_parameters())


@pytest.mark.parametrize("lora", ["null", "{r: 4, target_modules: all-linear}"], ids=["full", "lora"])
def test_it_starts_without_a_margin_and_learns_one(tuned, lora):
    done = run_stage("dpo", f"--dpo.lora={lora}", folder=tuned)
    assert done.code == 0, done.output
    first, *_, last = (entry for entry in history(tuned / "runs/tiny/dpo") if "rewards/margins" in entry)
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert first["loss"] == pytest.approx(0.6931, abs=1e-4)
    assert last["rewards/margins"] > 0
    assert first["logps/chosen"] < 0 and first["logps/rejected"] < 0


def test_the_length_of_chosen_and_rejected_answers_is_logged(tuned):
    assert run_stage("dpo", folder=tuned).code == 0
    source = ConversationSource(license="mit", path=str(tuned / "preferences.jsonl"))
    _, held_out, _ = load_preferences([source], 0.1, seed=7)
    tokenizer = load_tokenizer(tuned / "runs/tiny/sft")

    def length(row: dict, name: str) -> int:
        question = encode_chat(tokenizer, row["prompt"], add_generation_prompt=True)[0]
        return len(encode_chat(tokenizer, row["prompt"] + row[name])[0]) - len(question)

    logged = history(tuned / "runs/tiny/dpo")
    for name in ("chosen", "rejected"):
        mean = sum(length(row, name) for row in held_out) / len(held_out)
        assert [entry[f"eval_lengths/{name}"] for entry in logged if "eval_loss" in entry] == [pytest.approx(mean)]
        assert sum(f"lengths/{name}" in entry for entry in logged) == 4


def test_a_reference_beside_the_model_gives_what_one_asked_before_gives(tuned):
    for name, value in (("before", "true"), ("beside", "false")):
        done = run_stage("dpo", f"--dpo.training.precompute_ref_log_probs={value}", folder=tuned)
        assert done.code == 0, done.output
        (tuned / "runs/tiny/dpo").rename(tuned / name)
    assert same_weights(tuned / "before", tuned / "beside")


@pytest.mark.parametrize(
    "lora",
    ["null", pytest.param("{r: 4, target_modules: all-linear}", marks=pytest.mark.slow)],
    ids=["full", "lora"],
)
def test_killed_and_started_again_it_ends_with_the_same_weights(tuned, lora):
    lora = f"--dpo.lora={lora}"
    assert run_stage("dpo", lora, folder=tuned).code == 0
    (tuned / "runs/tiny/dpo").rename(tuned / "undisturbed")
    assert run_stage("dpo", lora, folder=tuned, kill_at=3).code == -9
    done = run_stage("dpo", lora, folder=tuned)
    assert done.code == 0, done.output
    assert "resuming at step 2" in done.output
    assert same_weights(tuned / "undisturbed", tuned / "runs/tiny/dpo")


def test_rows_that_have_changed_are_not_gone_on_with(tuned):
    assert run_stage("dpo", folder=tuned, kill_at=3).code == -9
    path = tuned / "preferences.jsonl"
    before = path.read_text()
    path.unlink()  # a link to what other tests read
    path.write_text(before.replace("What", "Who"))
    done = run_stage("dpo", folder=tuned)
    assert refused(done, "checkpoint-2 belongs to another training:\n  rows: was"), done.output
    path.write_text(before)
    assert run_stage("dpo", folder=tuned).code == 0


def test_of_the_best_model_its_own_numbers_are_told(tuned):
    keys = ("load_best_model_at_end=true", "eval_strategy=steps", "eval_steps=2", "metric_for_best_model=eval_loss")
    best = [f"--dpo.training.{key}" for key in (*keys, "greater_is_better=true")]  # so that it is not the last
    done = run_stage("dpo", *best, folder=tuned)
    assert done.code == 0, done.output
    folder = tuned / "runs/tiny/dpo"
    losses = [entry["eval_loss"] for entry in history(folder) if "eval_loss" in entry]
    assert facts(folder)["metrics"]["eval_loss"] == losses[0] > losses[1]


BAD = {
    "chosen and rejected are the same": {"prompt": "Well?", "chosen": "No.", "rejected": "No. "},
    "an empty answer": {"prompt": "Well?", "chosen": "Yes.", "rejected": " "},
}


def with_rows(folder, *rows: dict, stage: str = "dpo") -> str:
    good = (folder / "preferences.jsonl").read_text().splitlines()
    (folder / "some.jsonl").write_text("\n".join([*good, *map(json.dumps, rows)]))
    return f"--{stage}.data=[{{path: some.jsonl, license: mit}}]"


def refused(done: Ended, words: str) -> bool:
    return done.code == 2 and words in done.output and "Traceback" not in done.output


@pytest.mark.parametrize("reason", BAD)
def test_a_pair_that_teaches_nothing_is_counted_and_refused_above_the_share_allowed(tuned, reason):
    data = with_rows(tuned, BAD[reason])
    done = run_stage("dpo", data, folder=tuned)
    assert refused(done, f"1 of 61 rows cannot be used (1 {reason})"), done.output
    done = run_stage("dpo", data, "--dpo.allow_drop=0.02", folder=tuned)
    assert done.code == 0, done.output
    assert facts(tuned / "runs/tiny/dpo")["rows"]["dropped"] == {reason: 1}


def test_an_answer_longer_than_the_context_is_left_out_whole(tuned):
    data = with_rows(tuned, {"prompt": "Well?", "chosen": "Yes.", "rejected": "The red fox sees the river. " * 40})
    done = run_stage("dpo", data, folder=tuned)
    assert done.code == 0, done.output
    assert "1 of 61 rows with their answers are longer than 128 tokens" in done.output
    rows = facts(tuned / "runs/tiny/dpo")["rows"]
    assert (rows["too_long"], rows["truncated"]) == (1, 0)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("--dpo.training.loss_typ=[ipo]", "did you mean loss_type?"),
        ("--dpo.training.loss_type=[ippo]", "'ippo' is unknown; did you mean ipo?"),
        ("--dpo.training.loss_type=[exo_pair]", "dpo.training: Label smoothing must be greater than 0.0"),
        ("--dpo.training.max_length=1024", "1024 tokens are more than the 128 that runs/tiny/sft sees"),
        ("--dpo.training={sync_ref_model: true, precompute_ref_log_probs: true}", "sync_ref_model=True` together"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_by_name(tuned, override, words):
    done = run_stage("dpo", override, folder=tuned)
    assert refused(done, words), done.output


def test_an_adapter_is_not_put_on_an_adapter(tuned):
    done = run_stage("dpo", "--dpo.model=runs/tiny/sft/adapter", "--dpo.lora={r: 4}", folder=tuned)
    assert refused(done, "runs/tiny/sft/adapter is an adapter itself; name runs/tiny/sft, which has it merged"), (
        done.output
    )


def test_the_reference_can_follow_the_model(tuned):
    moving = ("--dpo.training.sync_ref_model=true", "--dpo.training.ref_model_sync_steps=1")
    done = run_stage("dpo", *moving, folder=tuned)
    assert done.code == 0, done.output
    assert history(tuned / "runs/tiny/dpo")[0]["rewards/margins"] == pytest.approx(0, abs=1e-5)
