"""How long a run's trainings will take, said before it begins, and what is not in that."""

import pytest
from datasets import Dataset

from hf_llm.pipeline.run import Run
from hf_llm.preflight.check_run import check_run
from hf_llm.preflight.run_time import estimate_shape, estimate_tokens, format_run_time
from hf_llm.training.training_time import BatchShape


def test_what_is_known_and_what_is_not_is_said():
    text = format_run_time({"base": 89.2, "sft": 15.0}, ["corpus", "base", "sft", "grpo", "evaluation"])
    assert text == (
        "training takes about 1 min 44 s on this machine: base 1 min 29 s, sft 15 s; not known before: grpo; the time "
        "of corpus, evaluation is not in it"
    )
    assert format_run_time({}, ["base"]) == "how long base will take shows in the log after the first steps"


def test_tokens_of_rows_are_estimated_from_their_characters():
    question = [{"role": "user", "content": "a" * 40}]
    short = [{"role": "assistant", "content": "b" * 8}]
    long = [{"role": "assistant", "content": "c" * 80}]
    pair = estimate_tokens({"prompt": question, "chosen": short, "rejected": long})
    assert pair == estimate_tokens({"messages": question + long})
    assert pair > estimate_tokens({"messages": question + short})
    assert estimate_tokens({"text": "d" * 400, "messages": None}) == 100


def test_a_batch_is_as_wide_as_its_longest_row():
    rows = [{"text": "a" * (400 if number % 2 else 40)} for number in range(8)]
    assert estimate_shape(Dataset.from_list(rows), micro_batch=2, texts=2) == BatchShape(4, 100)


def test_a_run_says_before_it_begins_how_long_its_trainings_take(tiny_life):
    output = (tiny_life / "output.txt").read_text(encoding="utf-8")
    begin, _, work = output.partition("== corpus ==")
    assert "training takes about" in begin
    assert "training takes about" not in work
    for folder in ("base", "sft", "dpo"):
        assert f"{folder} " in begin
    assert work.count("on this machine: ") == 3  # each training by itself


def test_a_training_that_has_been_begun_takes_what_is_left(tiny_inputs, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tiny_inputs)
    run = Run(["tiny.yaml", "--pretrain.training.max_steps=100000"])
    whole = check_run(run, tmp_path_factory.mktemp("whole"), with_time=True).run_time
    (run.folder("base") / "checkpoint-99999").mkdir(parents=True)
    left = check_run(run, tmp_path_factory.mktemp("left"), with_time=True).run_time
    assert " min" in whole.partition("base ")[2].partition(",")[0]
    assert " min" not in left.partition("base ")[2].partition(",")[0]


@pytest.mark.parametrize(
    ("overrides", "folder"),
    [
        (["--sft={data: [{path: many.jsonl, license: mit}], training: {num_train_epochs: 1}}"], "sft"),
        (["--pretrain.training.max_steps=-1", "--pretrain.training.num_train_epochs=1"], "base"),
    ],
)
def test_what_cannot_be_known_is_named(overrides, folder, tiny_inputs, tmp_path, monkeypatch):
    monkeypatch.chdir(tiny_inputs)
    chats = (tiny_inputs / "chats.jsonl").read_text(encoding="utf-8")
    (tiny_inputs / "many.jsonl").write_text(chats * 20, encoding="utf-8")
    text = check_run(Run(["tiny.yaml", *overrides]), tmp_path / "work", with_time=True).run_time
    assert f"not known before: {folder};" in text
