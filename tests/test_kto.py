"""KTO: answers called good or bad, alone or from pairs; the reference is the model before; a kill costs nothing."""

import json

import pytest
from safetensors.torch import load_file

from tests.aligned_recipe import chat_model, facts, history, run_stage, same_weights
from tests.tiny_recipe import launch


@pytest.fixture
def tuned(tiny_life, tmp_path):
    """A folder with a chat model of the tiny run, and 40 answers with labels."""
    folder = chat_model(tiny_life, tmp_path)
    rows = [
        {"prompt": f"Is it {n}?", "completion": "The red fox." if n % 2 else "no no no", "label": bool(n % 2)}
        for n in range(40)
    ]
    (folder / "labelled.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


LABELLED = "--kto.data=[{path: labelled.jsonl, license: mit}]"


@pytest.mark.parametrize("lora", ["null", "{r: 4, target_modules: all-linear}"], ids=["full", "lora"])
def test_it_starts_without_a_margin_and_learns_one(tuned, lora):
    done = run_stage("kto", LABELLED, f"--kto.lora={lora}", folder=tuned)
    assert done.code == 0, done.output
    first, *_, last = (entry for entry in history(tuned / "runs/tiny/kto") if "loss" in entry)
    assert first["loss"] == pytest.approx(0.5, abs=1e-5)  # 1 - sigmoid(0)
    assert first["rewards/chosen"] == pytest.approx(0, abs=1e-5) == first["rewards/rejected"]
    assert first["kl_per_completion"] == pytest.approx(0, abs=1e-5)
    evaluation = facts(tuned / "runs/tiny/kto")["metrics"]
    assert evaluation["eval_rewards/chosen"] > evaluation["eval_rewards/rejected"]
    assert last["loss"] < first["loss"]


@pytest.mark.parametrize("loss", ["kto", "apo_zero_unpaired"])
def test_every_variant_moves_every_parameter_of_pairs_taken_apart(tuned, loss):
    done = run_stage("kto", f"--kto.training.loss_type={loss}", folder=tuned)
    assert done.code == 0, done.output
    before, after = (load_file(tuned / "runs/tiny" / name / "model.safetensors") for name in ("sft", "kto"))
    assert before.keys() == after.keys() and all((before[name] != after[name]).any() for name in before)
    assert facts(tuned / "runs/tiny/kto")["rows"]["kept"] == 120  # of 60 pairs


def test_killed_and_started_again_it_ends_with_the_same_weights(tuned):
    assert run_stage("kto", folder=tuned).code == 0
    (tuned / "runs/tiny/kto").rename(tuned / "undisturbed")
    assert run_stage("kto", folder=tuned, kill_at=3).code == -9
    done = run_stage("kto", folder=tuned)
    assert "resuming at step 2" in done.output, done.output
    assert same_weights(tuned / "undisturbed", tuned / "runs/tiny/kto")


def test_answers_that_are_all_good_are_refused(tuned):
    rows = [line for line in (tuned / "labelled.jsonl").read_text().splitlines() if json.loads(line)["label"]]
    (tuned / "labelled.jsonl").write_text("\n".join(rows))
    done = run_stage("kto", LABELLED, folder=tuned)
    assert done.code == 2 and "answers to train on are good; add rows, some of them bad" in done.output, done.output


def test_an_answer_longer_than_the_context_is_left_out_whole(tuned):
    with open(tuned / "labelled.jsonl", "a") as file:
        file.write("\n" + json.dumps({"prompt": "Well?", "completion": "The red fox. " * 80, "label": True}))
    done = run_stage("kto", LABELLED, folder=tuned)
    assert done.code == 0, done.output
    assert "1 of 41 rows with their answers are longer than 128 tokens" in done.output
    assert facts(tuned / "runs/tiny/kto")["rows"]["too_long"] == 1


@pytest.mark.slow
def test_two_processes_train_under_zero2(tuned):
    done = launch("zero2", "hf_llm.kto", "tiny.yaml", folder=tuned)
    assert done.returncode == 0, done.stdout + done.stderr
    assert facts(tuned / "runs/tiny/kto")["processes"] == 2
