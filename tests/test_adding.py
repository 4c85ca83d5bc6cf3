"""docs/layout.md says what to touch to add a filter, a switch, a stage, a metric and a loss: one of each is added here.

In a copy of the repository, by the page's rows and nothing else; then the copy's own tests of its tables, and a test of
what was added, have to pass there.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny_recipe import ROOT

FILTER = '''"""Drop texts written in capitals."""

from dataclasses import dataclass

from hf_llm.data.corpus.filters.base import KEPT, Document, Filter, FilterSettings, Verdict


@dataclass
class Capitals(FilterSettings):
    """`capitals` of the rules."""

    max_capitals: float = 0.5
    """The largest share of letters that may be capitals."""

    def make_filter(self) -> Filter:
        return CapitalsFilter(self)


class CapitalsFilter(Filter):
    name = "capitals"

    def filter(self, document: Document) -> Verdict:
        letters = [letter for letter in document.text if letter.isalpha()]
        share = sum(letter.isupper() for letter in letters) / max(len(letters), 1)
        if share > self.settings.max_capitals:
            return Verdict("capitals", f"{share:.0%} of the letters")
        return KEPT
'''

STAGE = '''"""Copy the base model; makes runs/<name>/copied.

    python -m hf_llm.copied recipes/quickstart.yaml
"""

import shutil
from dataclasses import dataclass, field

from hf_llm.core.errors import command
from hf_llm.pipeline.run import licenses_of, read_run


@dataclass
class CopiedSection:
    """The `copied` section."""

    note: str = ""
    """A remark."""


@dataclass
class Recipe:
    """What this stage reads of the recipe."""

    name: str
    """The run's name: everything goes to runs/<name>/."""
    copied: CopiedSection = field(default_factory=CopiedSection)
    """A copy of the base model."""


@command
def main(argv: list[str] | None = None) -> None:
    run, recipe = read_run(Recipe, argv)
    with run.open_stage("copied", recipe, {"base": None}) as output:
        if output.is_complete:
            return
        shutil.copy(output.sources["base"] / "model.safetensors", output.path)
        output.complete("1 file", licenses_of(output.sources["base"]))
'''

ADDED_TESTS = '''"""What was added works."""

import torch
import yaml

from hf_llm.core.manifest import read_manifest, write_manifest
from hf_llm.evaluation.metrics import list_charts
from hf_llm.model.cross_entropy import HfLlmHead, LossTerms, training_objective
from hf_llm.monitoring.callbacks.console_format import format_progress
from hf_llm.pretrain import PretrainSection
from hf_llm.training.pretraining_trainer import PretrainingTrainer
from tests.tiny_models import tiny_model


def test_the_switch_changes_the_model_and_keeps_it_from_stock_classes():
    plain, scaled = tiny_model(), tiny_model(embedding_scale=2.0)
    scaled.load_state_dict(plain.state_dict())
    ids = torch.arange(8)[None]
    assert not torch.allclose(plain(ids).logits, scaled(ids).logits)
    assert plain.config.exports_to == "qwen3" and scaled.config.exports_to == "not exportable"


def test_the_stage_is_requested_run_and_listed(tmp_path, monkeypatch, capsys):
    from hf_llm.__main__ import main
    from hf_llm.copied import main as copy

    monkeypatch.chdir(tmp_path)
    recipe = {"copied": {"note": "x"}, "pretrain": {"tokens_per_step": 64, "training": {"max_steps": 1}}}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    base = tmp_path / "runs/r/base"
    base.mkdir(parents=True)
    (base / "model.safetensors").write_text("weights")
    settings = {"pretrain.tokens_per_step": 64, "pretrain.training.max_steps": 1}
    write_manifest(base, folder="base", headline="", seconds=0, licenses=["mit"], settings=settings, inputs={})
    copy(["r.yaml"])
    assert read_manifest(tmp_path / "runs/r/copied")["inputs"].keys() == {"base"}
    main([])
    assert "Copy the base model" in capsys.readouterr().out


def test_the_metric_has_a_line_in_the_console_and_a_chart():
    assert "weight norm 3.25" in format_progress(1, 2, {"loss": 1.0, "weight_norm": 3.25}, {})
    assert any(key == "weight_norm" for lines in list_charts().values() for _, key in lines)


def test_the_loss_has_one_value_and_gradient_whole_and_in_chunks(monkeypatch):
    monkeypatch.setattr("hf_llm.model.cross_entropy.LOGITS_AT_ONCE", {"cpu": 50, "cuda": 50})
    torch.manual_seed(0)
    head = HfLlmHead(4, 11, bias=False)
    hidden = torch.randn(9, 4)
    labels = torch.randint(11, (9,))
    terms = LossTerms(logit_norm=0.1)
    results = []
    for whole in (True, False):
        states = hidden.clone().requires_grad_()
        logits = states @ head.weight.T
        objective, plain = training_objective(logits, labels, terms) if whole else head(states, labels, terms)
        assert objective > plain
        objective.backward()
        results.append((objective.detach(), states.grad))
    torch.testing.assert_close(results[0], results[1])
    assert PretrainSection(tokens_per_step=8, training={}, logit_norm=0.1).logit_norm == 0.1
    assert "logit_norm" in PretrainingTrainer.__init__.__kwdefaults__
'''


class Copy:
    """A copy of the repository, and edits of its files."""

    def __init__(self, folder: Path):
        self.folder = folder
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        for name in ("src", "tests", "docs", "recipes", "accelerate_configs", "ds_configs", "benchmarks"):
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, folder)

    def write(self, path: str, text: str) -> None:
        (self.folder / path).write_text(text, encoding="utf-8")

    def insert(self, path: str, text: str, *, before: str = "", after: str = "") -> None:
        """Insert `text` at an anchor that stands in the file exactly once."""
        anchor = before or after
        content = (self.folder / path).read_text(encoding="utf-8")
        assert content.count(anchor) == 1, (path, anchor, content.count(anchor))
        self.write(path, content.replace(anchor, text + anchor if before else anchor + text))

    def append(self, path: str, text: str) -> None:
        with open(self.folder / path, "a", encoding="utf-8") as file:
            file.write(text)

    def run(self, *arguments: str) -> subprocess.CompletedProcess:
        environment = {**os.environ, "PYTHONPATH": f"{self.folder / 'src'}{os.pathsep}{self.folder}"}
        environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", *arguments]
        return subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False, timeout=600
        )


def add_filter(copy: Copy) -> None:
    copy.write("src/hf_llm/data/corpus/filters/capitals.py", FILTER)
    config = "src/hf_llm/data/corpus/config.py"
    copy.insert(
        config,
        "from hf_llm.data.corpus.filters.capitals import Capitals\n",
        before="from hf_llm.data.corpus.filters.classifier import",
    )
    field = '    capitals: Capitals | None = None\n    """Drop texts written in capitals."""\n\n'
    copy.insert(config, field, before="    adult: Adult | None = None\n")
    faults = '        "shouting": [text.upper() for text in carriers],\n'
    copy.insert("tests/data/corpus/planted.py", faults, before='        "language": [text * 4')
    tests = "tests/data/corpus/test_filter_pipeline.py"
    copy.insert(tests, '    "capitals": ["shouting"],\n', before='    "adult": ["explicit", "profane"],\n')
    copy.insert(tests, "        capitals=Capitals(),\n", before="        adult=Adult(),\n")
    copy.insert(
        tests,
        "from hf_llm.data.corpus.filters.capitals import Capitals\n",
        before="from hf_llm.data.corpus.filters.classifier import",
    )
    copy.append("docs/filters.md", "| `capitals` | texts in capitals | - |\n")


def add_switch(copy: Copy) -> None:
    config = "src/hf_llm/model/configuration_hf_llm.py"
    copy.insert(config, '    "embedding_scale": 1.0,\n', before='    "final_logit_softcapping": None,\n')
    field = '    embedding_scale: float = 1.0\n    """The factor of the embeddings."""\n'
    copy.insert(config, field, before="    final_logit_softcapping: float | None = None\n")
    model = "src/hf_llm/model/modeling_hf_llm.py"
    line = "        hidden_states = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds  # B T D\n"
    copy.insert(model, "        hidden_states = hidden_states * self.config.embedding_scale\n", after=line)
    variant = '    "embedding_scale": ({"embedding_scale": 2.0}, "not exportable"),\n'
    copy.insert("tests/variants.py", variant, before='    "soft_cap": (')
    names = "tests/model/test_configuration_hf_llm.py"
    copy.insert(names, '"embedding_scale", ', before='"expert_balancing"),')
    copy.append("docs/architecture.md", "| `embedding_scale` | 1 | factor | - |\n")


def add_stage(copy: Copy) -> None:
    copy.write("src/hf_llm/copied.py", STAGE)
    record = '    Stage("copied", "hf_llm.copied", "Copy", "data", ("copied",), reads=("base",), is_optional=True),\n'
    copy.insert("src/hf_llm/pipeline/stages.py", record, before='    Stage("evaluation",')
    copy.insert("src/hf_llm/__main__.py", '"copied", ', before='"evaluate", "report",')
    copy.insert(
        "docs/layout.md", "  copied.py            base/ -> copied/\n", before="  evaluate.py          the models"
    )


def add_metric(copy: Copy) -> None:
    record = (
        '    Metric(\n        "weight_norm", "weight norm", ".2f", chart=Chart(), label="weight norm {}",\n'
        '        views=("progress line",),\n    ),\n'
    )
    metrics = "src/hf_llm/evaluation/metrics.py"
    copy.insert(metrics, record, before='    Metric(\n        "objective",')
    copy.append("docs/monitoring.md", "\n`weight_norm` is the norm of all weights.\n")


def add_loss(copy: Copy) -> None:
    losses = "src/hf_llm/model/cross_entropy.py"
    field = '    logit_norm: float = 0.0\n    """Weight of the mean square of the logits."""\n'
    copy.insert(losses, field, before="\n\nNO_TERMS = LossTerms()")
    value = (
        "    norms = logits.square().mean(dim=-1) * (labels != IGNORE_INDEX)\n"
        "    objective = objective + terms.logit_norm * norms.sum()\n"
    )
    copy.insert(losses, value, before="    log_sums = logits.logsumexp(dim=-1)")
    in_chunk = (
        "            if terms.logit_norm:\n"
        "                norms = logits.float().square().mean(-1, keepdim=True)\n"
        "                added += terms.logit_norm * (norms * has_label).sum()\n"
    )
    copy.insert(losses, in_chunk, before="            if grad_hidden is None and grad_weight is None:\n")
    gradient = (
        "            if terms.logit_norm:\n"
        "                grad_logits.add_(logits, alpha=2 * terms.logit_norm / weight.shape[0])\n"
    )
    copy.insert(losses, gradient, before="            if softcap is not None:\n                grad_logits.mul_(1 -")
    trainer = "src/hf_llm/training/pretraining_trainer.py"
    copy.insert(trainer, "        logit_norm: float = 0.0,\n", after="        z_loss: float = 0.0,\n")
    copy.insert(trainer, ", logit_norm=logit_norm", after="args.label_smoothing_factor, z_loss=z_loss")
    pretrain = "src/hf_llm/pretrain.py"
    section = '    logit_norm: float = 0.0\n    """Weight of the mean square of the logits."""\n'
    copy.insert(pretrain, section, before="    samples: SamplesSection = ")
    copy.insert(pretrain, "        logit_norm=section.logit_norm,\n", after="        z_loss=section.z_loss,\n")
    copy.append("docs/optimizers.md", "| `logit_norm` | smaller logits | - |\n")


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy with one of each added, and docs/reference.md made again."""
    copy = Copy(tmp_path_factory.mktemp("copy"))
    for add in (add_filter, add_switch, add_stage, add_metric, add_loss):
        add(copy)
    done = copy.run("tests.reference_page")
    assert done.returncode == 0, done.stderr
    copy.write("tests/test_added.py", ADDED_TESTS)
    return copy


def test_one_of_each_is_added_by_the_page_alone(copy):
    done = copy.run(
        *("pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow and not gpu"),
        *("tests/test_added.py", "tests/test_layout.py", "tests/test_docs.py", "tests/test_main.py"),
        *("tests/test_export.py", "tests/evaluation/test_metrics.py", "tests/model/test_cross_entropy.py"),
        *("tests/data/corpus/test_filter_pipeline.py", "tests/model/test_configuration_hf_llm.py"),
        *("tests/test_readme.py::test_the_tree_on_the_page_of_the_layout_is_the_tree", "tests/pipeline"),
        "--ignore=tests/pipeline/test_folder_lock.py",  # nothing that was added bears on it, and it takes long
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
