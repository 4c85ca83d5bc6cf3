"""Ablations by the real command: killed in the middle, resumed, compared, shown."""

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path
from statistics import fmean

import pytest
import torch
from transformers import Trainer, TrainingArguments

from hf_llm import ablate
from hf_llm.core.manifest import read_manifest
from hf_llm.core.recipe import parse_yaml
from hf_llm.experiments.seed_statistics import mean_interval
from tests.fork_server import environment, python
from tests.page_structure import Structure
from tests.tiny_models import tiny_model
from tests.tiny_recipe import run_module, write_inputs

STEPS = ("--pretrain.training.max_steps=6", "--pretrain.training.save_steps=2", "--pretrain.training.eval_steps=3")
VARY = ("tiny.yaml", "--vary=model.positions=rope,learned", "--seeds=2", *STEPS)
TIMEOUT_SECONDS = 300


def wait_until(condition, description):
    end = time.monotonic() + TIMEOUT_SECONDS
    while not condition():
        assert time.monotonic() < end, f"waited {TIMEOUT_SECONDS} s for {description}"
        time.sleep(0.02)


def modification_times(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if "logs" not in path.parts}


@pytest.fixture(scope="module")
def ablated(tmp_path_factory):
    """A folder where an ablation of two variants with two seeds was killed in its second training, and resumed."""
    folder = tmp_path_factory.mktemp("ablation")
    write_inputs(folder)
    finished = folder / "runs/tiny/ablation/baseline/seed-7"
    second = folder / "runs/tiny/ablation/positions-learned/seed-7/base"
    command = [python(), "-m", "hf_llm.ablate", *VARY]
    process = subprocess.Popen(
        command, cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        wait_until(lambda: list(second.glob("checkpoint-*/manifest.json")) or process.poll() is not None, "a save")
    finally:
        process.send_signal(signal.SIGKILL)
        said, _ = process.communicate(timeout=TIMEOUT_SECONDS)  # until all of its processes are gone
    assert read_manifest(second) is None, said
    before = modification_times(finished)
    done = run_module("hf_llm.ablate", *VARY, folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    # The recipe is written again; nothing else of a finished training is touched.
    after = modification_times(finished)
    assert after == before | {path: time for path, time in after.items() if "recipe" in path}
    (folder / "output.txt").write_text(done.stdout, encoding="utf-8")
    return folder


@pytest.fixture
def results(ablated):
    return json.loads((ablated / "runs/tiny/ablation/results.json").read_text(encoding="utf-8"))


def test_a_killed_experiment_resumes_and_leaves_finished_trainings_alone(ablated):
    output = (ablated / "output.txt").read_text(encoding="utf-8")
    assert "baseline, seed 7 (1 of 4): finished" in output
    assert "resuming at step" in output.split("\n== ")[1]
    steps = json.loads((ablated / "runs/tiny/ablation/positions-learned/seed-7/base/trainer_state.json").read_text())
    assert steps["global_step"] == 6


def test_every_training_is_a_run_of_its_own_on_shared_data(ablated):
    runs = ablated / "runs/tiny"
    tokens = read_manifest(runs / "tokens")
    for variant in ("baseline", "positions-learned"):
        for seed in (7, 8):
            root = runs / "ablation" / variant / f"seed-{seed}"
            assert (root / "tokens").resolve() == (runs / "tokens").resolve()
            base = read_manifest(root / "base")
            assert base["inputs"]["tokens"] == tokens["digest"]
            assert base["licenses"] == ["cc0-1.0"]
            assert base["settings"]["seed"] == seed
    assert not (runs / "base").exists()


def test_the_report_of_a_training_is_made_by_its_own_recipe(ablated, tmp_path):
    shutil.copytree(ablated / "runs", tmp_path / "runs", symlinks=True)
    recipe = "runs/tiny/ablation/positions-learned/seed-8/recipe.yaml"
    assert parse_yaml((tmp_path / recipe).read_text())["name"] == "tiny/ablation/positions-learned/seed-8"
    done = run_module("hf_llm.report", recipe, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    page = tmp_path / "runs/tiny/ablation/positions-learned/seed-8/report/index.html"
    assert "Pretraining" in page.read_text(encoding="utf-8")


def test_the_results_are_those_of_the_trainings(ablated, results):
    baseline, learned = results["variants"]
    scores = {}
    for row in (baseline, learned):
        for seed, root in row["runs"].items():
            metrics = read_manifest(ablated / root / "base")["facts"]["metrics"]
            assert row["scores"][seed] == metrics["eval_bits_per_byte"]
        scores[row["name"]] = row["scores"]
        assert row["mean"] == pytest.approx(fmean(row["scores"].values()))
        assert row["tokens_per_second"] > 0
    differences = [scores["positions-learned"][seed] - scores["baseline"][seed] for seed in ("7", "8")]
    assert learned["difference"] == pytest.approx(fmean(differences))
    assert learned["difference_interval"] == pytest.approx(mean_interval(differences))
    assert len(set(scores["baseline"].values())) == 2
    assert abs(learned["parameters"] / baseline["parameters"] - 1) <= 0.01
    assert learned["fitted"]


def test_the_page_stands_alone_and_shows_every_variant(ablated, results):
    page = Structure((ablated / "runs/tiny/ablation/index.html").read_text(encoding="utf-8"))
    verdict = results["variants"][1]["verdict"]
    for words in ("baseline", "positions-learned", "Bits per byte on validation text", "paired by seed", verdict):
        assert words in page.text
    assert page.tags.count("svg") == 2
    assert not [address for address in page.addresses if address]


def test_the_terminal_shows_the_table_and_the_path_of_the_page(ablated):
    output = (ablated / "output.txt").read_text(encoding="utf-8")
    for words in ("4 trainings, about", "equal parameters within 1%", "95% interval", "runs/tiny/ablation/index.html"):
        assert words in output


@pytest.mark.slow
def test_a_variant_that_fails_does_not_stop_the_others(ablated, tmp_path):
    shutil.copytree(ablated, tmp_path / "copy", symlinks=True)
    baseline_folder = "runs/tiny/ablation/baseline/seed-7/base"
    vary = f"--vary=pretrain.start_from=no/such/folder,{baseline_folder}"
    done = run_module("hf_llm.ablate", "tiny.yaml", vary, *STEPS, folder=tmp_path / "copy")
    assert done.returncode == 1, done.stdout + done.stderr
    results = json.loads((tmp_path / "copy/runs/tiny/ablation/results.json").read_text(encoding="utf-8"))
    rows = {json.dumps(row["changes"]): row for row in results["variants"]}
    failed = rows[json.dumps({"pretrain.start_from": "no/such/folder"})]
    assert "no/such/folder" in failed["failures"]["7"] and failed["mean"] is None
    other = rows[json.dumps({"pretrain.start_from": baseline_folder})]
    assert other["mean"] < rows["{}"]["mean"]  # it was trained for twice as long
    assert "1 failed" in done.stdout


def test_other_settings_do_not_overwrite_earlier_trainings(ablated, monkeypatch, capsys):
    monkeypatch.chdir(ablated)
    with pytest.raises(SystemExit) as end:
        ablate.main([*VARY[:3], "--pretrain.training.max_steps=7", *STEPS[1:]])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert "pretrain.training.max_steps: was 6, is 7" in error and "--into ablation-2" in error


def test_a_wrong_value_is_refused_before_anything_is_made(tiny_inputs, monkeypatch, capsys):
    monkeypatch.chdir(tiny_inputs)
    with pytest.raises(SystemExit) as end:
        ablate.main(["tiny.yaml", "--vary", "model.positions=alibi,rotary"])
    assert end.value.code == 2
    assert "rotary" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_variants_of_a_seed_read_the_same_data_in_the_same_order(tmp_path):
    rows = [{"input_ids": torch.full((4,), number), "labels": torch.full((4,), number)} for number in range(64)]

    def order(width, seed):
        batch = {"per_device_train_batch_size": 4}
        args = TrainingArguments(str(tmp_path), seed=seed, use_cpu=True, report_to="none", **batch)
        trainer = Trainer(model=tiny_model(hidden_size=width), args=args, train_dataset=rows)
        return [batch["input_ids"][:, 0].tolist() for batch in trainer.get_train_dataloader()]

    assert order(32, 7) == order(64, 7)
    assert order(32, 7) != order(32, 8)


@pytest.mark.slow
def test_another_tokenizer_is_made_once_and_compared_on_the_same_text(tiny_inputs):
    vary = (
        "--vary=tokenizer.sample_bytes=200000000,60000",
        "--vary=model.positions=rope,alibi",
        "--equal=none",
        *STEPS,
    )
    done = run_module("hf_llm.ablate", "tiny.yaml", *vary, folder=tiny_inputs)
    assert done.returncode == 0, done.stdout + done.stderr
    runs = tiny_inputs / "runs/tiny"
    [data] = (runs / "ablation/data").iterdir()
    assert (data / "corpus").resolve() == (runs / "corpus").resolve()
    assert not (data / "tokenizer").is_symlink()
    results = json.loads((runs / "ablation/results.json").read_text(encoding="utf-8"))
    assert len(results["variants"]) == 4
    for row in results["variants"]:
        root = tiny_inputs / row["runs"]["7"]
        measured = json.loads((root / "held_out.json").read_text(encoding="utf-8"))
        assert row["scores"]["7"] == measured["bits_per_byte"]
        own = read_manifest(root / "base")["facts"]["metrics"]["eval_bits_per_byte"]
        assert measured["bits_per_byte"] == pytest.approx(own, rel=0.05)
