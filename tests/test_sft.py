"""SFT as a person runs it, and what it promises: the loss, the merge, the preview, the refusals."""

import copy
import json
import shutil

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from trl import SFTConfig, SFTTrainer

from hf_llm.core.labels import IGNORE_INDEX
from hf_llm.model.load import load_model
from hf_llm.posttraining.sft_trainer import SupervisedSFTTrainer
from hf_llm.sft import main
from tests.tiny_models import tiny_model, tiny_tokenizer
from tests.tiny_recipe import run_module


@pytest.fixture
def pretrained(tiny_life, tmp_path):
    """A folder where the tiny base model is ready and nothing after it."""
    for item in ("texts", "tiny.yaml", "chats.jsonl"):
        (tmp_path / item).symlink_to(tiny_life / item)
    for item in ("corpus", "tokenizer", "tokens", "base"):
        shutil.copytree(tiny_life / "runs/tiny" / item, tmp_path / "runs/tiny" / item)
    return tmp_path


def run_sft(folder, monkeypatch, *arguments) -> int:
    """`python -m hf_llm.sft tiny.yaml arguments` in `folder`, in this process. Returns the exit code."""
    monkeypatch.chdir(folder)
    try:
        main(["tiny.yaml", *arguments])
    except SystemExit as stopped:
        return stopped.code
    return 0


def facts_of(folder) -> dict:
    return json.loads((folder / "runs/tiny/sft/manifest.json").read_text())["facts"]


def batches() -> list[dict]:
    """Eight rows of different lengths, of each of which another part is learnt."""
    torch.manual_seed(1)
    rows = []
    for length in range(6, 30, 3):
        ids = torch.randint(0, 256, (length,)).tolist()
        rows.append({"input_ids": ids, "labels": [IGNORE_INDEX] * (length // 3) + ids[length // 3 :]})
    return rows


@pytest.mark.parametrize("trainer_class", [SFTTrainer, SupervisedSFTTrainer])
@pytest.mark.parametrize(("batch", "accumulation"), [(8, 1), (2, 4)])
def test_trls_loss_and_step_are_those_of_the_models_own_loss(tmp_path, trainer_class, batch, accumulation):
    model, tokenizer, rows = tiny_model(), tiny_tokenizer(), batches()
    own = copy.deepcopy(model)
    arguments = SFTConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        bf16=False,
        max_steps=1,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        optim="sgd",
        learning_rate=0.1,
        lr_scheduler_type="constant",
        max_grad_norm=0,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
    )
    trainer = trainer_class(model, arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    trainer.train()
    count = sum(label != IGNORE_INDEX for row in rows for label in row["labels"][1:])
    loss = sum(
        own(
            input_ids=torch.tensor([row["input_ids"]]),
            labels=torch.tensor([row["labels"]]),
            num_items_in_batch=count,
        ).loss
        for row in rows
    )
    loss.backward()
    logged = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    assert logged == pytest.approx(loss.item(), abs=1e-5)
    for (name, after), before in zip(model.named_parameters(), own.parameters(), strict=True):
        torch.testing.assert_close(after, before - 0.1 * before.grad, atol=1e-5, rtol=1e-4, msg=name)


@torch.no_grad()
def test_the_merged_model_has_the_adapters_logits_after_both_are_loaded_again(tiny_life):
    folder = tiny_life / "runs/tiny/sft"
    ids = torch.arange(40)[None]
    merged = load_model(folder).eval()(ids).logits
    base = load_model(tiny_life / "runs/tiny/base").eval()
    before = base(ids).logits
    adapted = PeftModel.from_pretrained(base, folder / "adapter").eval()(ids).logits
    torch.testing.assert_close(merged, adapted, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(merged, before, atol=1e-6)


def test_the_stop_rate_stands_in_manifest_headline_and_report(tiny_life):
    manifest = json.loads((tiny_life / "runs/tiny/sft/manifest.json").read_text())
    metrics = manifest["facts"]["metrics"]
    assert metrics["stop_prompts"] == 6 and 0 <= metrics["stop_rate"] <= 1
    words = f"EOS rate {metrics['stop_rate']:.0%} ({metrics['stop_rate'] * 6:.0f} of 6 prompts)"
    assert manifest["headline"].endswith(words)
    assert words in (tiny_life / "runs/tiny/report/index.html").read_text()
    said = "WARNING: the model does not stop" in (tiny_life / "output.txt").read_text()
    assert said == ("stop_warning" in metrics) == (metrics["stop_rate"] < 0.5)


def test_a_preview_shows_rows_and_counts_and_trains_nothing(pretrained, monkeypatch, capsys):
    rows = (pretrained / "chats.jsonl").read_text().splitlines()
    bad = {"messages": [{"role": "assistant", "content": "Me first."}]}
    (pretrained / "some.jsonl").write_text("\n".join([*rows, json.dumps(bad)]))
    data = "--sft.data=[{path: some.jsonl, license: mit}]"
    shutil.rmtree(pretrained / "runs/tiny/base")
    assert run_sft(pretrained, monkeypatch, "--preview", data, "--sft.allow_drop=0.1") == 0
    shown = capsys.readouterr().out
    assert "<|im_start|>user⏎\nTell me about the" in shown
    assert "[.][<|im_end|>]⏎" in shown and "\033[" not in shown
    assert "1 dropped: starts with the assistant" in shown
    assert "54 rows to train on, 6 held out" in shown
    assert not (pretrained / "runs/tiny/sft").exists() and not (pretrained / "runs/tiny/base").exists()


def test_packed_rows_documents_shares_and_trls_own_keys_go_together(pretrained):
    (pretrained / "ours").mkdir()
    for number in range(12):
        (pretrained / "ours" / f"{number}.md").write_text(f"Machine {number} has {number} wheels, and runs well.")
    sources = "[{path: chats.jsonl, license: mit, share: 3}, {documents: ours, license: mit, share: 1}]"
    done = run_module(
        "hf_llm.sft",
        "tiny.yaml",
        f"--sft.data={sources}",
        "--sft.training.packing=true",
        "--sft.training.neftune_noise_alpha=5",
        folder=pretrained,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = facts_of(pretrained)["rows"]
    assert [(each["source"], each["kept"]) for each in rows["sources"]] == [("chats.jsonl", 60), ("ours", 12)]
    assert rows["train"] + rows["eval"] == 72 and rows["truncated"] == 0
    assert "60         0         0         0         0  chats.jsonl" in done.stdout


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("--sft.training.packing_strategy=wrapped", "attend to each other"),
        ("--sft.training.assistant_only_loss=false", "questions are never supervised"),
        ("--sft.quantize=4bit", "needs an NVIDIA GPU"),
        ("--sft.quantize=3bit", "sft.quantize"),
        ("--sft.training.max_length=8", "60 conversations have no answer that ends within 8 tokens"),
        ("--sft.data=[{path: chats.jsonl, license: mit, format: alpaca}]", "not what format 'alpaca'"),
    ],
)
def test_what_would_teach_the_wrong_thing_is_refused(pretrained, monkeypatch, capsys, override, words):
    assert run_sft(pretrained, monkeypatch, "--sft.training.packing=true", override) == 2
    assert words in capsys.readouterr().err


def test_a_chat_template_other_than_the_tokenizers_is_refused(pretrained, monkeypatch, capsys):
    path = pretrained / "runs/tiny/base/chat_template.jinja"
    path.write_text(path.read_text().replace("These functions can be called", "Here are tools"))
    assert run_sft(pretrained, monkeypatch) == 2
    assert "its chat template differs from that of runs/tiny/tokenizer" in capsys.readouterr().err
