"""The whole life of a tiny model, as `python -m hf_llm.run` makes it."""

import json
import math
import subprocess
import sys
import textwrap
import time

import datasets
import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3ForCausalLM

from hf_llm.core.manifest import file_digests, read_manifest
from hf_llm.pipeline.run import Run
from hf_llm.pipeline.status import GATES_MISSED, read_status
from hf_llm.run import next_commands
from tests.fork_server import environment, python
from tests.tiny_recipe import launch, prepare, run_module

FOLDERS = ("corpus", "tokenizer", "tokens", "base", "sft", "dpo", "evaluation", "report")


def test_every_stage_leaves_a_finished_folder_that_names_its_inputs(tiny_life):
    run = tiny_life / "runs" / "tiny"
    manifests = {folder: read_manifest(run / folder) for folder in FOLDERS}
    assert all(manifests.values())
    assert manifests["tokenizer"]["inputs"] == {"corpus": manifests["corpus"]["digest"]}
    assert manifests["base"]["inputs"]["tokens"] == manifests["tokens"]["digest"]
    assert manifests["sft"]["inputs"] == {"base": manifests["base"]["digest"]}
    assert manifests["dpo"]["inputs"] == {"sft": manifests["sft"]["digest"]}
    assert manifests["base"]["licenses"] == ["cc0-1.0"]
    assert manifests["dpo"]["licenses"] == ["cc0-1.0", "mit"]
    assert manifests["base"]["recipe"]["pretrain"]["evaluation_tokens"] == 1024
    assert manifests["corpus"]["recipe"]["corpus"]["max_chars"] == 100_000  # a default
    assert manifests["base"]["facts"]["arguments"]["adam_beta2"] == 0.95
    for folder in ("tokens", "base", "dpo"):
        found = file_digests(run / folder)
        assert manifests[folder]["files"] == {path: found[path] for path in manifests[folder]["files"]}


def test_it_ends_with_a_table_samples_the_report_and_what_to_try_next(tiny_life):
    output = (tiny_life / "output.txt").read_text(encoding="utf-8")
    for words in ("runs/tiny is complete", "What is red?", "runs/tiny/report/index.html", "python -m hf_llm.chat"):
        assert words in output
    for folder in FOLDERS:
        assert f"  {folder}" in output


def test_run_again_it_does_nothing_and_says_so(tiny_life):
    before = {path: path.stat().st_mtime_ns for path in (tiny_life / "runs").rglob("*")}
    again = run_module("hf_llm.run", "tiny.yaml", folder=tiny_life)
    assert again.returncode == 0
    assert "nothing was done" in again.stdout
    assert before == {path: path.stat().st_mtime_ns for path in (tiny_life / "runs").rglob("*")}


def test_the_folders_open_with_their_ecosystems_loaders(tiny_life):
    run = tiny_life / "runs" / "tiny"
    corpus = datasets.load_dataset(str(run / "corpus"), cache_dir=str(tiny_life / "cache"))
    assert set(corpus) == {"train", "validation", "test"}
    assert {"id", "text", "source", "license", "url"} <= set(corpus["train"].column_names)
    tokenizer = AutoTokenizer.from_pretrained(run / "tokenizer")
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    for folder in ("base", "sft", "dpo"):
        model = AutoModelForCausalLM.from_pretrained(run / folder, trust_remote_code=True)
        assert model.num_parameters() > 0
        assert AutoTokenizer.from_pretrained(run / folder).get_vocab() == tokenizer.get_vocab()
        assert not list((run / folder).glob("*.bin"))


def bytes_per_predicted_token(run):
    """Bytes of text behind a token of the validation windows that the model predicts: all but the first of each."""
    index = json.loads((run / "tokens/index.json").read_text())
    shard = np.fromfile(run / "tokens" / index["splits"]["validation"][0]["file"], dtype=index["dtype"])
    windows = shard[:1024].reshape(-1, 128)  # evaluation_tokens, and the context
    tokenizer = AutoTokenizer.from_pretrained(run / "tokenizer")
    tokens = [token for token in windows[:, 1:].flatten() if token != tokenizer.eos_token_id]
    characters = "".join(tokenizer.convert_ids_to_tokens(tokens))  # of a byte-level tokenizer: one for each byte
    return len(characters) / windows[:, 1:].size


def test_the_loss_falls_and_the_numbers_are_consistent(tiny_life):
    history = json.loads((tiny_life / "runs/tiny/base/trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert losses[-1] < losses[0] - 0.3
    evaluations = [entry for entry in history if "eval_loss" in entry]
    assert len(evaluations) > 1
    for entry in evaluations:
        bits = entry["eval_loss"] / math.log(2) / bytes_per_predicted_token(tiny_life / "runs/tiny")
        assert entry["eval_bits_per_byte"] == pytest.approx(bits, rel=1e-6)
        assert entry["eval_perplexity"] == pytest.approx(math.exp(entry["eval_loss"]), rel=1e-6)
    assert all(entry["tokens_per_second"] > 0 for entry in history if "loss" in entry)


def test_samples_were_made_while_it_trained(tiny_life):
    lines = (tiny_life / "runs/tiny/base/samples.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [6, 12]


def test_a_chat_model_knows_where_to_stop(tiny_life):
    model = AutoModelForCausalLM.from_pretrained(tiny_life / "runs/tiny/sft", trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(tiny_life / "runs/tiny/sft")
    ends = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")}
    assert set(model.generation_config.eos_token_id) == ends


def test_the_merged_model_answers_like_base_and_adapter(tiny_life):
    import torch
    from peft import PeftModel

    run = tiny_life / "runs" / "tiny"
    merged = AutoModelForCausalLM.from_pretrained(run / "sft", trust_remote_code=True)
    base = AutoModelForCausalLM.from_pretrained(run / "base", trust_remote_code=True)
    adapted = PeftModel.from_pretrained(base, run / "sft" / "adapter")
    ids = torch.arange(10, 30)[None]
    with torch.no_grad():
        assert torch.allclose(merged(ids).logits, adapted(ids).logits, atol=1e-5)


def test_every_checkpoint_opens_where_hf_llm_is_not_installed(tiny_life):
    run = tiny_life / "runs" / "tiny"
    folders = [run / "base", run / "dpo", *sorted((run / "base").glob("checkpoint-*"))]
    assert len(folders) >= 4
    code = """
        import sys
        sys.modules["hf_llm"] = None  # an import of it fails
        import torch
        from transformers import AutoModelForCausalLM
        for folder in sys.argv[1:]:
            model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
            out = model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=3, do_sample=False)
            print(type(model).__name__, tuple(out.shape))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, folders)], capture_output=True, text=True, check=False
    )
    assert done.stdout.count("HfLlmForCausalLM (1, 6)") == len(folders), done.stderr


def test_the_export_opens_as_qwen3(tiny_life, tmp_path):
    done = run_module(
        "hf_llm.export", "runs/tiny/dpo", "--to", "qwen3", "--output", str(tmp_path / "q"), folder=tiny_life
    )
    assert done.returncode == 0, done.stderr
    assert isinstance(AutoModelForCausalLM.from_pretrained(tmp_path / "q"), Qwen3ForCausalLM)


def test_the_report_is_one_page_without_outside_parts(tiny_life):
    page = (tiny_life / "runs/tiny/report/index.html").read_text(encoding="utf-8")
    assert "What is red?" in page
    assert 'src="http' not in page and 'href="http' not in page.replace('href="https://huggingface.co', "")


def test_a_changed_recipe_is_refused_before_any_work(tiny_life, refusal):
    said = refusal("hf_llm.run", "tiny.yaml", "--tokenizer.vocab_size=512", folder=tiny_life)
    assert "tokenizer.vocab_size: was 320, is 512" in said


def test_every_section_is_checked_before_the_first_stage_runs(tiny_inputs, refusal, monkeypatch):
    monkeypatch.delenv("HF_LLM_SKIP_CHECK")
    said = refusal("hf_llm.run", "tiny.yaml", "--dpo.training.betta=1", folder=tiny_inputs)
    assert "dpo.training.betta: no such key; did you mean beta?" in said
    assert not (tiny_inputs / "runs").exists()


def test_killed_twice_it_goes_on_and_ends_the_same(tiny_life, tiny_inputs):
    """kill -9 to the whole program while it trains the base model, then while it trains the chat model."""
    run = tiny_inputs / "runs" / "tiny"
    for moment in (run / "base/checkpoint-4", run / "sft/checkpoint-2"):
        process = subprocess.Popen(
            [python(), "-m", "hf_llm.run", "tiny.yaml"],
            cwd=tiny_inputs,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        while not moment.exists() and process.poll() is None:
            time.sleep(0.001)
        process.kill()  # and with it all that it has started
        process.communicate(timeout=60)
        assert moment.exists() and not (moment.parent / "manifest.json").exists()
    done = run_module("hf_llm.run", "tiny.yaml", folder=tiny_inputs, forked=False)  # its sets are ordered anew
    assert done.returncode == 0, done.stdout + done.stderr
    for folder in ("corpus", "tokenizer", "tokens", "base", "sft", "dpo"):
        ours, undisturbed = (read_manifest(life / "runs/tiny" / folder)["files"] for life in (tiny_inputs, tiny_life))
        weights = [
            name for name in undisturbed if name.endswith((".safetensors", ".bin", ".parquet", "tokenizer.json"))
        ]
        assert weights and {name: ours[name] for name in weights} == {name: undisturbed[name] for name in weights}


def test_an_error_that_needs_an_edit_does_not_promise_that_the_same_command_goes_on(tiny_inputs):
    done = run_module("hf_llm.run", "tiny.yaml", "--corpus.min_chars=100000", folder=tiny_inputs)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "stopped (exit code 2); correct what the error names, then the same command resumes there" in done.stdout


def test_next_prints_every_command_once(tiny_life, monkeypatch):
    monkeypatch.chdir(tiny_life)
    run = Run(["tiny.yaml"])
    for model in ("base", "dpo"):
        commands = [line.split()[2] for line in next_commands(run, run.folder(model))]
        assert len(set(commands)) == len(commands) >= 2


def test_missed_gates_end_a_finished_run_with_3_until_they_are_met(tiny_life, tmp_path):
    folder = prepare(tiny_life, tmp_path, made=FOLDERS)
    run = folder / "runs/tiny"
    before = {name: read_manifest(run / name)["created"] for name in FOLDERS if name != "report"}
    missed = "--evaluate.gates={perplexity: '< 2', base.bits_per_byte: '> 0'}"
    for _ in range(2):
        done = run_module("hf_llm.run", "tiny.yaml", missed, folder=folder)
        assert done.returncode == 3, done.stdout + done.stderr
        lines = done.stdout.splitlines()
        report = next(n for n, line in enumerate(lines) if line.startswith("The report:"))
        assert any(line.strip().startswith("missed: perplexity of dpo is") for line in lines[report:])
    assert before == {name: read_manifest(run / name)["created"] for name in before}
    page = (run / "report/index.html").read_text(encoding="utf-8")
    assert "<h2>Gates</h2>" in page
    assert "missed" in page

    launched = launch("cpu", "hf_llm.evaluate", "tiny.yaml", missed, folder=folder, processes=1)
    assert launched.returncode == 1  # the launcher's own code
    status = read_status(run)
    assert (status["status"], status["exit_code"], len(status["missed"])) == (GATES_MISSED, 3, 1)

    done = run_module("hf_llm.run", "tiny.yaml", "--evaluate.gates={perplexity: '> 2'}", folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert read_status(run)["status"] == "finished"


def test_a_run_whose_evaluation_misses_its_gates_makes_the_report_too(tiny_life, tmp_path):
    folder = prepare(tiny_life, tmp_path, made=FOLDERS[:-2])
    done = run_module("hf_llm.run", "tiny.yaml", "--evaluate.gates={perplexity: '< 2'}", folder=folder)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "runs/tiny is complete" in done.stdout
    assert (folder / "runs/tiny/report/index.html").exists()
