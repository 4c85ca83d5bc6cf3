"""The evaluation stage, as a command, on a run of two tiny models."""

import json
import math
import shutil

import pytest
import torch
from huggingface_hub import ModelCard
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hf_llm import evaluate
from hf_llm.core.manifest import read_manifest, write_json, write_manifest
from hf_llm.data.tokens.token_shards import Documents, smallest_id_dtype, tokenize_documents, write_shards
from hf_llm.evaluation.evaluated_model import EvaluatedModel
from hf_llm.evaluation.harness import tasks
from hf_llm.evaluation.journal import Journal
from hf_llm.model.load import load_model
from hf_llm.pipeline.status import read_status
from tests.tiny_recipe import ROOT, launch

RECIPE = """
name: tiny
sft: {data: []}
evaluate: {tokens: 200, max_new_tokens: 4, prompts: ["What is a list?", "Name a number."]}
"""
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer(template: str | None = CHATML, first: str = "a") -> PreTrainedTokenizerFast:
    """One token a byte; `first` is the letter that stands first in the vocabulary."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet(), key=lambda letter: (letter != first, letter))
    special = ["<|pad|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens = Tokenizer(models.BPE({token: i for i, token in enumerate([*special, *alphabet])}, []))
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    tokens.add_special_tokens(special)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokens, pad_token="<|pad|>", eos_token="<|endoftext|>", chat_template=template
    )


def write_test_manifest(folder, **inputs):
    entries = {"folder": folder.name, "headline": "", "seconds": 1.0, "licenses": ["mit"], "settings": {}, "facts": {}}
    settings = {"sft.data": []} if folder.name == "sft" else {}
    return write_manifest(folder, **{**entries, "settings": settings}, inputs=inputs)["digest"]


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    root, tokenizer = tmp_path / "runs/tiny", byte_tokenizer()
    for folder in ("tokenizer", "tokens", "base", "sft"):
        (root / folder).mkdir(parents=True)
    tokenizer.save_pretrained(root / "tokenizer")
    digests = {"tokenizer": write_test_manifest(root / "tokenizer")}
    texts = [f"{number} is a number, and so is {number + 1}." for number in range(30)]
    size = len(tokenizer)
    batches = tokenize_documents(
        [Documents.from_texts(texts)],
        byte_tokenizer().backend_tokenizer,
        tokenizer.eos_token_id,
        smallest_id_dtype(size),
    )
    *_, (shard,) = write_shards(root / "tokens", "test-00000", batches)
    index = {"dtype": "uint16", "vocab_size": size, "eos_token_id": 1, "tokenizer": ""}
    write_json(root / "tokens/index.json", {**index, "splits": {"test": [shard]}})
    digests["tokens"] = write_test_manifest(root / "tokens", tokenizer=digests["tokenizer"])
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    for folder, before in (("base", "tokens"), ("sft", "base")):
        config = LlamaConfig(vocab_size=size, max_position_embeddings=64, eos_token_id=1, bos_token_id=None, **sizes)
        LlamaForCausalLM(config).save_pretrained(root / folder)
        tokenizer.save_pretrained(root / folder)
        digests[folder] = write_test_manifest(root / folder, **{before: digests[before]})
    return root


def test_every_model_of_the_run_is_scored_and_answers(run, capsys):
    evaluate.main(["tiny.yaml"])
    results = json.loads((run / "evaluation/results.json").read_text())
    assert list(results["models"]) == ["base", "sft"]
    for scores in results["models"].values():
        assert scores["tokens"] == 3 * 63  # of 200 tokens: three windows of 64, the first token of each not predicted
        assert scores["loss"] == pytest.approx(math.log(260), abs=0.5)  # the models know nothing
    assert [sample["prompt"] for sample in results["samples"]] == ["What is a list?", "Name a number."]
    assert all(set(sample["answers"]) == {"base", "sft"} for sample in results["samples"])
    manifest = read_manifest(run / "evaluation")
    assert set(manifest["inputs"]) == {"tokens", "base", "sft"}
    assert manifest["facts"]["results"] == results["models"]
    assert manifest["licenses"] == ["mit"]
    card = ModelCard.load(run / "sft/README.md")
    measured = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert measured["perplexity"] == results["models"]["sft"]["perplexity"]
    assert "perplexity on the test split (lower is better)" in card.text
    printed = capsys.readouterr().out
    assert "bits per byte on the test split (lower is better)" in printed
    assert f"{results['models']['sft']['bits_per_byte']:.4f}" in printed


def test_a_complete_evaluation_is_not_made_again(run, capsys):
    evaluate.main(["tiny.yaml"])
    before = (run / "evaluation/results.json").stat().st_mtime_ns
    capsys.readouterr()
    evaluate.main(["tiny.yaml"])
    assert "is complete" in capsys.readouterr().out
    assert (run / "evaluation/results.json").stat().st_mtime_ns == before


def test_a_chat_model_is_told_by_its_manifest_else_by_its_template(run, tmp_path):
    def is_chat(path, template=CHATML):
        model = EvaluatedModel("name", path)
        model.tokenizer = byte_tokenizer(template)
        return model.is_chat

    assert not is_chat(run / "base")
    assert is_chat(run / "sft")
    assert is_chat("someone/else")
    assert not is_chat("someone/else", template=None)


def test_models_can_be_named_instead(run):
    evaluate.main(["tiny.yaml", "--evaluate.models=[runs/tiny/base]", "--evaluate.prompts=[]"])
    results = json.loads((run / "evaluation/results.json").read_text())
    assert list(results["models"]) == ["base"]
    assert results["samples"] == []


def test_a_model_with_another_tokenizer_is_refused(run, tmp_path, capsys):
    byte_tokenizer(first="z").save_pretrained(tmp_path / "other")
    load_model(run / "base").save_pretrained(tmp_path / "other")
    with pytest.raises(SystemExit) as stopped:
        evaluate.main(["tiny.yaml", "--evaluate.models=[other]"])
    assert stopped.value.code == 2
    assert "another tokenizer" in capsys.readouterr().err


def test_too_little_test_text_is_a_user_error(run, capsys):
    index = json.loads((run / "tokens/index.json").read_text())
    index["splits"] = {}
    write_json(run / "tokens/index.json", index)
    with pytest.raises(SystemExit):
        evaluate.main(["tiny.yaml"])
    assert "runs/tiny/base: inputs changed: tokens" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        evaluate.main(["tiny.yaml", "--evaluate.models=[runs/tiny/base]"])
    assert "test split" in capsys.readouterr().err


def test_another_setting_measures_only_what_is_new(run, capsys):
    evaluate.main(["tiny.yaml"])
    first = json.loads((run / "evaluation/results.json").read_text())
    printed = capsys.readouterr().out
    assert "base: test split" in printed
    evaluate.main(["tiny.yaml", '--evaluate.prompts=["What is a list?"]'])
    printed = capsys.readouterr().out
    assert "base: answers" in printed
    assert "test split" not in printed.partition("evaluating")[2].partition("bits per byte")[0]
    second = json.loads((run / "evaluation/results.json").read_text())
    assert second["models"]["base"]["loss"] == first["models"]["base"]["loss"]
    assert second["models"]["base"]["ms_per_token"] == first["models"]["base"]["ms_per_token"]


def test_the_domains_are_scored_apart(run, tmp_path):
    (tmp_path / "numbers.txt").write_text("One is a number, and so is two.\n" * 20)
    (tmp_path / "rows.jsonl").write_text('{"text": "A list holds values."}\n{"text": ""}\n' * 9)
    domains = "[{name: numbers, path: numbers.txt}, {name: lists, path: rows.jsonl}]"
    evaluate.main(["tiny.yaml", f"--evaluate.domains={domains}"])
    scores = json.loads((run / "evaluation/results.json").read_text())["models"]["base"]["domains"]
    assert list(scores) == ["numbers", "lists"]
    assert scores["numbers"]["bits_per_byte"] == pytest.approx(math.log2(260), abs=1)  # one token a byte
    assert scores["lists"]["left_out"] == {"no text": 9}


def test_the_end_of_answers_and_the_cost_of_a_token_are_measured(run):
    evaluate.main(["tiny.yaml"])
    for scores in json.loads((run / "evaluation/results.json").read_text())["models"].values():
        assert scores["stop_prompts"] == 2
        assert 0 <= scores["stop_rate"] <= 1
        assert scores["ms_per_token"] > 0
        assert scores["memory_gib"] > 0


def test_a_model_alone_is_evaluated_without_a_recipe(run, tmp_path, monkeypatch):
    evaluate.main(["--model=runs/tiny/sft", "--evaluate.max_new_tokens=4"])
    results = json.loads((tmp_path / "runs/tiny-sft-evaluation/evaluation/results.json").read_text())
    assert list(results["models"]) == ["sft"]
    assert results["models"]["sft"]["tokens"] == 13 * 63  # all the test text of its own run
    (run / "sft").rename(tmp_path / "lonely")
    evaluate.main(["--model", "lonely", "--evaluate.max_new_tokens=4"])
    (path,) = tmp_path.glob("runs/*lonely-evaluation/evaluation/results.json")
    (scores,) = json.loads(path.read_text())["models"].values()
    assert "perplexity" not in scores
    assert scores["stop_prompts"] == 2


def test_a_recipe_and_a_model_option_together_are_refused(run, capsys):
    with pytest.raises(SystemExit):
        evaluate.main(["tiny.yaml", "--model=runs/tiny/sft"])
    assert "stands instead of a recipe" in capsys.readouterr().err


def test_nothing_is_written_into_the_folder_of_a_model(run):
    before = {path: path.read_bytes() for path in (run / "base").iterdir() if path.name != "README.md"}
    evaluate.main(["tiny.yaml"])
    assert {path: path.read_bytes() for path in (run / "base").iterdir() if path.name != "README.md"} == before


def test_gates_end_with_3_after_the_work_and_another_bound_measures_nothing(run, capsys):
    def evaluate_with(bound):
        try:
            evaluate.main(["tiny.yaml", f"--evaluate.gates={{perplexity: '{bound}'}}"])
        except SystemExit as stopped:
            return stopped.code
        return 0

    assert evaluate_with("< 2") == 3
    printed = capsys.readouterr().out
    assert "missed: perplexity of sft is" in printed
    results = run / "evaluation/results.json"
    before = (results.stat().st_ino, results.stat().st_mtime_ns)
    assert evaluate_with("< 2") == 3  # on every rerun
    assert read_status(run)["missed"]
    assert evaluate_with("< 100_000") == 0
    assert evaluate_with("> 100_000") == 3
    assert "evaluating" not in capsys.readouterr().out
    assert (results.stat().st_ino, results.stat().st_mtime_ns) == before
    evaluate.main(["tiny.yaml"])
    assert read_status(run) == {}


def test_a_gate_of_an_unknown_metric_is_refused_before_anything_is_measured(run, monkeypatch, capsys):
    monkeypatch.delenv("HF_LLM_SKIP_CHECK")
    with pytest.raises(SystemExit) as stopped:
        evaluate.main(["tiny.yaml", "--evaluate.gates={perplexty: '< 2'}"])
    assert stopped.value.code == 2
    assert "evaluate.gates.perplexty: no such metric" in capsys.readouterr().err
    assert not (run / "evaluation").exists()


def write_harness_rows(folder):
    """Forty questions in the form of ARC's rows of llm-foundry."""
    rows = [
        {"query": f"What comes after {number}?", "choices": [str(number + 1), str(number), "0", "9"], "gold": 0}
        for number in range(40)
    ]
    (folder / "arc_easy.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


ARC = ("--evaluate.tasks=[arc_easy]", "--evaluate.task_data=.", "--evaluate.prompts=[]", "--evaluate.speed=false")


def read_arc(run):
    return json.loads((run / "evaluation/results.json").read_text())["models"]["base"]["benchmarks"]["arc_easy"]


def test_two_processes_score_what_one_does(run, tmp_path):
    pytest.importorskip("lm_eval")
    write_harness_rows(tmp_path)
    evaluate.main(["tiny.yaml", "--evaluate.models=[runs/tiny/base]", *ARC])
    alone = read_arc(run)
    (run / "evaluation").rename(run / "alone")
    shutil.copytree(ROOT / "accelerate_configs", tmp_path / "accelerate_configs")
    done = launch("ddp", "hf_llm.evaluate", "tiny.yaml", "--evaluate.models=[runs/tiny/base]", *ARC, folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    together = read_arc(run)
    assert together["scores"] == alone["scores"]
    documents = [Journal(run / folder / alone["documents"]).read() for folder in ("alone", "evaluation")]
    for one, other in zip(*documents, strict=True):
        assert one["id"] == other["id"]
        assert one["log_likelihoods"] == pytest.approx(other["log_likelihoods"], abs=1e-4)
    assert len(list((run / "evaluation" / together["documents"]).glob("documents.*"))) == 2


def test_an_evaluation_that_was_killed_goes_on_with_the_next_documents(run, tmp_path, monkeypatch, capsys):
    pytest.importorskip("lm_eval")
    write_harness_rows(tmp_path)
    find = tasks.find_benchmarks
    append = Journal.append

    def find_with_small_batches(*arguments):
        (benchmark,) = find(*arguments)
        benchmark.batch_size = 8
        return [benchmark]

    def die_after_two_batches(self, rows):
        append(self, rows)
        if len(self.read()) == 16:
            raise KeyboardInterrupt

    monkeypatch.setattr(tasks, "find_benchmarks", find_with_small_batches)
    monkeypatch.setattr(Journal, "append", die_after_two_batches)
    with pytest.raises(KeyboardInterrupt):
        evaluate.main(["tiny.yaml", "--evaluate.models=[runs/tiny/base]", *ARC])
    monkeypatch.setattr(Journal, "append", append)
    capsys.readouterr()
    evaluate.main(["tiny.yaml", "--evaluate.models=[runs/tiny/base]", *ARC])
    assert "16 documents are scored already" in capsys.readouterr().out
    assert read_arc(run)["scores"][0]["documents"] == 40


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("--evaluate.tasks=[arc_easyy]", "did you mean arc_easy"),
        ("--evaluate.tasks=[humaneval]", "run_generated_code"),
        ("--evaluate.references=[{path: nowhere.jsonl}]", "nowhere.jsonl"),
    ],
)
def test_what_cannot_be_asked_for_leaves_an_earlier_evaluation_as_it_is(run, capsys, asked, words):
    pytest.importorskip("lm_eval")
    evaluate.main(["tiny.yaml"])
    before = (run / "evaluation/results.json").read_bytes()
    with pytest.raises(SystemExit) as stopped:
        evaluate.main(["tiny.yaml", asked])
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err
    assert (run / "evaluation/results.json").read_bytes() == before
    assert not (run / "evaluation.1").exists()


def test_a_model_that_cannot_be_reached_is_an_error_that_names_it(run, capsys):
    with pytest.raises(SystemExit) as stopped:
        evaluate.main(["--model=nobody/nothing", "--evaluate.speed=false"])
    assert stopped.value.code == 2
    assert "nobody/nothing: no model to load" in capsys.readouterr().err
