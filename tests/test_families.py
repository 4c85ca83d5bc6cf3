"""Models of other families from scratch: their whole life of a test's size, on real text where there is some."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from transformers import AutoModelForMaskedLM, AutoModelForSeq2SeqLM, AutoTokenizer, pipeline, set_seed

from hf_llm.core.errors import UserError
from hf_llm.core.manifest import file_digest, read_manifest
from hf_llm.model.load import build_model, load_tokenizer
from hf_llm.pipeline.run import Run
from hf_llm.posttraining.starting_model import model_context_length
from hf_llm.preflight.check_run import check_run
from tests.tiny_recipe import RECIPE, ROOT, launch, losses, run_module, write_inputs

DATA = os.environ.get("HF_LLM_DATA", "")
SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
FAMILIES = {
    "bert": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, **SIZES},
    "albert": {"embedding_size": 32, **SIZES},
    "modernbert": {"local_attention": 32, **SIZES},
    "distilbert": {"dim": 64, "hidden_dim": 128, "n_layers": 2, "n_heads": 4},
    "t5": {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0},
}
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES if name != "bert"]
GAPS = {"t5": "The <extra_id_0> fox"}


def recipe(name, folder):
    """The tiny recipe for a family, without the stages that need a causal model, in `folder`."""
    if not (folder / "texts").exists():
        write_inputs(folder)
    tree = yaml.safe_load(RECIPE)
    del tree["sft"], tree["dpo"]
    prompt = GAPS.get(name, "The <|mask|> fox")
    tree |= {"name": name, "model": {"model_type": name, **FAMILIES[name]}}
    tree["tokenizer"]["vocab_size"] = {"t5": 448}.get(name, 320)
    tree["corpus"]["max_tokens"] = 40000
    if DATA:
        tree["corpus"]["sources"] = [{"path": f"{DATA}/tinyshakespeare/input.txt", "license": "cc0-1.0"}]
    tree["pretrain"] |= {"context": 64, "samples": {"prompts": [prompt], "max_new_tokens": 8}}
    tree["pretrain"]["training"] |= {"max_steps": 60, "eval_steps": 20, "save_steps": 30, "learning_rate": 1e-2}
    tree["evaluate"] |= {"prompts": [prompt], "tokens": 4096}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    return folder / f"{name}.yaml", tree


@pytest.fixture(scope="module")
def lives(tmp_path_factory):
    """A function that gives the folder in which a family has lived its whole life, and its recipe."""
    folder, lived = tmp_path_factory.mktemp("families"), {}

    def live(name):
        if name not in lived:
            path, tree = recipe(name, folder)
            done = run_module("hf_llm.run", path.name, folder=folder)
            assert done.returncode == 0, done.stdout + done.stderr
            lived[name] = tree
        return folder / "runs" / name, lived[name]

    return live


@pytest.mark.parametrize("name", ["bert", *SLOW])
def test_a_family_lives_from_raw_text_to_its_evaluation(lives, name):
    run, tree = lives(name)
    trained, validation = losses(run / "base"), losses(run / "base", "eval_loss")
    assert trained[-1] < trained[0] - 0.5 and validation[-1] < validation[0]
    key = "target_accuracy" if name == "t5" else "masked_accuracy"
    assert losses(run / "base", f"eval_{key}")[-1] > 0.05
    assert not losses(run / "base", "eval_perplexity") and not losses(run / "base", "eval_bits_per_byte")

    tokenizer = load_tokenizer(run / "tokenizer")
    set_seed(tree["seed"])
    new = build_model(tree["model"], tokenizer, 64)
    auto = AutoModelForSeq2SeqLM if name == "t5" else AutoModelForMaskedLM
    model, found = auto.from_pretrained(run / "base", output_loading_info=True)
    assert type(model) is type(new) and not found["missing_keys"] and not found["unexpected_keys"]
    for (parameter, before), after in zip(new.named_parameters(), model.parameters(), strict=True):
        assert not torch.equal(before, after), f"{parameter} has not moved"

    scores = json.loads((run / "evaluation/results.json").read_text())["models"]["base"]
    assert scores[key] > 0.05 and scores["loss"] < trained[0] - 0.5
    assert "bits_per_byte" not in scores and "perplexity" not in scores
    if name == "t5":
        assert 0 <= scores["span_exact_match"] <= 1 and scores["spans"] > 100
    else:
        assert 1 < scores["pseudo_perplexity"] < 512


@pytest.mark.parametrize("name", ["bert", *SLOW])
def test_card_report_samples_and_headlines_speak_of_what_it_does(lives, name):
    run, _ = lives(name)
    facts = read_manifest(run / "base")["facts"]
    kind = {"t5": "span_corruption"}.get(name, "masked")
    assert facts["objective"]["kind"] == kind
    assert facts["objective"]["share"] == {"modernbert": 0.3}.get(name, 0.15)
    headline = read_manifest(run / "base")["headline"]
    assert re.search(r"(masked-token|span) accuracy .*%.*, loss", headline)
    accuracy = "span accuracy" if name == "t5" else "masked-token accuracy"
    assert accuracy in read_manifest(run / "evaluation")["headline"]
    page = (run / "report/index.html").read_text(encoding="utf-8")
    assert ("Span accuracy" if name == "t5" else "Masked-token accuracy") in page
    assert "its bits per byte" not in page and "perplexity per token" not in page
    sample = json.loads((run / "base/samples.jsonl").read_text().splitlines()[-1])
    assert sample["text"].startswith("The ") and sample["text"].endswith(" fox") and "<" not in sample["text"]
    card = (run / "base/README.md").read_text(encoding="utf-8")
    assert f"pipeline_tag: {'text2text-generation' if name == 't5' else 'fill-mask'}" in card
    assert "test split |" not in card  # it was made before the evaluation
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1].replace("runs/", f"{run.parent}/")
    exec(compile(code, "README.md", "exec"), {})


def test_the_pipeline_of_transformers_fills_masks_with_it(lives):
    run, _ = lives("bert")
    fill = pipeline("fill-mask", model=str(run / "base"))
    assert fill.tokenizer.mask_token == "<|mask|>"
    found = fill("The <|mask|> of the king")
    assert len(found) == 5 and sum(each["score"] for each in found) <= 1
    assert AutoTokenizer.from_pretrained(run / "base").model_max_length == 64


CHAT = "--sft={data: [{path: chats.jsonl, license: mit}], training: {max_steps: 1, report_to: none}}"


def test_a_recipe_that_would_teach_it_to_chat_is_refused_before_any_work(lives, tmp_path, monkeypatch):
    run, _ = lives("bert")
    monkeypatch.chdir(run.parent.parent)
    findings = check_run(Run(["bert.yaml", "--name=other", CHAT]), tmp_path)
    assert len(findings.problems) == 1
    assert findings.problems[0].startswith("sft: the model_type makes a masked language model, which fills gaps")
    with pytest.raises(UserError, match=r"needed here is a causal language model.*model_type hf_llm, llama"):
        model_context_length(run / "base")


@pytest.mark.slow
def test_stages_that_need_a_causal_model_say_so(lives):
    run, _ = lives("bert")
    folder = run.parent.parent
    for arguments in (("hf_llm.sft", "bert.yaml", CHAT), ("hf_llm.generate", "runs/bert/base", "--prompt=The")):
        done = run_module(*arguments, folder=folder)
        assert done.returncode == 2, done.stdout + done.stderr
        assert "runs/bert/base is a masked language model, which fills gaps" in done.stderr
        assert "Traceback" not in done.stderr
    done = run_module("hf_llm.run", "bert.yaml", CHAT, "--name=never", folder=folder)
    assert done.returncode == 2 and "sft: the model_type makes a masked language model" in done.stderr
    assert not (folder / "runs/never").exists()


@pytest.mark.slow
def test_a_tokenizer_made_for_a_causal_model_is_refused_with_the_remedy(prepared):
    model = "--model={model_type: bert, hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2}"
    done = run_module("hf_llm.pretrain", "tiny.yaml", model, "--pretrain.context=64", folder=prepared)
    assert done.returncode == 2
    assert "has no mask token" in done.stderr and "--fresh=tokenizer" in done.stderr


@pytest.mark.slow
def test_a_student_of_a_trained_bert_starts_from_what_it_knows_and_learns_on(lives):
    run, _ = lives("bert")
    teacher = losses(run / "base", "eval_loss")
    done = run_module(
        "hf_llm.pretrain",
        "bert.yaml",
        "--name=student",
        "--model={model_type: bert}",
        "--pretrain.start_from=runs/bert/base",
        "--pretrain.keep_layers=[1]",
        "--pretrain.tokens=runs/bert/tokens",
        "--pretrain.tokenizer=runs/bert/tokenizer",
        folder=run.parent.parent,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    student = run.parent / "student/base"
    assert json.loads((student / "config.json").read_text())["num_hidden_layers"] == 1
    assert losses(student)[0] < losses(run / "base")[0] - 0.3  # it has not started from scratch
    assert losses(student, "eval_loss")[-1] < teacher[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "t5"])
def test_killed_in_its_second_epoch_it_ends_with_the_same_weights_on_other_workers(lives, name):
    run, _ = lives(name)
    folder = run.parent.parent
    arguments = [
        "hf_llm.pretrain", f"{name}.yaml", f"--pretrain.tokens=runs/{name}/tokens", "--pretrain.tokens_per_step=8192",
        f"--pretrain.tokenizer=runs/{name}/tokenizer", "--pretrain.training.max_steps=12",
        "--pretrain.training.save_steps=3", "--pretrain.training.eval_steps=4",
    ]  # fmt: skip
    whole = run_module(*arguments, f"--name={name}-whole", folder=folder)
    assert whole.returncode == 0, whole.stderr

    arguments.append(f"--name={name}-killed")
    base = folder / f"runs/{name}-killed/base"
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments, "--pretrain.training.dataloader_num_workers=2"],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    while not (base / "checkpoint-6").exists() and process.poll() is None:
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(60)
    assert not (base / "manifest.json").exists()

    done = run_module(*arguments, "--pretrain.training.dataloader_num_workers=1", folder=folder)
    assert done.returncode == 0, done.stderr
    assert "resuming at step" in done.stdout
    undisturbed = folder / f"runs/{name}-whole/base"
    assert file_digest(base / "model.safetensors") == file_digest(undisturbed / "model.safetensors")
    for key in ("loss", "eval_loss"):
        assert losses(base, key) == losses(undisturbed, key)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "t5"])
def test_two_processes_have_the_losses_of_one(lives, name):
    run, _ = lives(name)
    folder = run.parent.parent
    if not (folder / "accelerate_configs").exists():
        (folder / "accelerate_configs").symlink_to(ROOT / "accelerate_configs")
    arguments = (
        f"{name}.yaml",
        f"--name={name}-two",
        f"--pretrain.tokens=runs/{name}/tokens",
        f"--pretrain.tokenizer=runs/{name}/tokenizer",
    )
    done = launch("ddp", "hf_llm.pretrain", *arguments, folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    two = losses(folder / f"runs/{name}-two/base")[:8]  # of 16 steps, all in the first epoch
    assert two == pytest.approx(losses(run / "base")[:8], abs=1e-3)
