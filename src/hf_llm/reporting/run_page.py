"""One self-contained HTML page about a run: numbers, curves, samples, where everything came from."""

import json
import math
import time
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from hf_llm.core.jsonl import alerts_file, read_rows
from hf_llm.core.manifest import read_manifest, versions
from hf_llm.pipeline.stages import ALIGNED_MODELS, MODELS, OPTIONAL, STAGES
from hf_llm.reporting import lineage, templates
from hf_llm.reporting.plan_accuracy import score
from hf_llm.reporting.secrets import redact
from hf_llm.reporting.svg_charts import Series, line_chart

BITS, PERPLEXITY = "Bits per byte, validation", "Perplexity, validation"

GRADIENT_PARTS = (
    "embeddings",
    "attention",
    "mlp",
    "norms",
    "head",
    "other",
)  # as hf_llm.monitoring.callbacks.gradient_norms has them

# title, lines as (legend, key in Trainer's log), whether the axis starts at zero; the first with data is drawn large
CHARTS = [
    ("Loss", [("training", "loss"), ("validation", "eval_loss")], False),
    ("Objective: the loss with what is added to it", [("training", "objective")], False),
    (BITS, [("validation", "eval_bits_per_byte")], False),
    ("Masked tokens right", [("validation", "eval_masked_accuracy")], True),
    ("Tokens of gaps right", [("validation", "eval_target_accuracy")], True),
    ("Reward", [("training", "reward"), ("validation", "eval_reward")], False),
    ("KL to the model before", [("training", "kl"), ("validation", "eval_kl")], True),
    ("Preferences ranked right", [("training", "rewards/accuracies"), ("validation", "eval_rewards/accuracies")], True),
    ("Pairs ranked right", [("training", "accuracy"), ("validation", "eval_accuracy")], True),
    ("Reward margin", [("training", "rewards/margins"), ("validation", "eval_rewards/margins")], True),
    ("Score margin", [("training", "margin"), ("validation", "eval_margin")], True),
    ("Token accuracy", [("training", "mean_token_accuracy"), ("validation", "eval_mean_token_accuracy")], True),
    ("Learning rate", [("learning rate", "learning_rate")], True),
    ("Gradient norm", [("gradient norm", "grad_norm")], True),
    ("Gradient norm by part", [(part, f"grad_norm/{part}") for part in GRADIENT_PARTS], True),
    ("Tokens per second", [("tokens per second", "tokens_per_second")], True),
    ("Memory, GiB", [("most so far", "memory_gib"), ("now", "memory_now_gib")], True),
    (PERPLEXITY, [("validation", "eval_perplexity")], False),
]


def page(root: Path, tree: dict[str, Any]) -> str:
    """The HTML of the run in folder `root`, made by the recipe `tree`. Unfinished stages are shown as missing."""
    manifests = {folder: manifest for folder in STAGES if (manifest := read_manifest(root / folder))}
    manifests.pop("report", None)
    models = [folder for folder in MODELS if folder in manifests]
    evaluation = evaluation_of(root) if "evaluation" in manifests else {"models": {}, "samples": []}
    scored = evaluation["models"].values()
    facts = {
        "title": tree["name"],
        "summary": summary(root, manifests, models),
        "numbers": numbers(root, manifests, models, evaluation),
        "stages": stages(tree, manifests),
        "scores": [
            (entry.what, f"{entry.predicted:,.4g}", f"{entry.actual:,.4g}", f"{entry.error:+.0%}")
            for entry in score(root, tree)
        ],
        "evaluation": evaluation,
        "scored": [words for key, (words, _) in lineage.SCORES.items() if any(key in each for each in scored)],
        "scores_of": {name: dict(lineage.in_words(found)) for name, found in evaluation["models"].items()},
        "ledger": ledger(manifests.get("corpus", {}).get("facts", {}).get("ledger")),
        "sources": lineage.sources(manifests),
        "licenses": sorted({name for manifest in manifests.values() for name in manifest["licenses"]}),
        "versions": manifests[models[-1]]["versions"] if models else versions(),
        "digests": {folder: manifest["digest"] for folder, manifest in manifests.items()},
        "recipe": yaml.safe_dump(redact(tree), sort_keys=False, allow_unicode=True, width=100),
        "made": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
    }
    template = templates.html().get_template("page.html")
    return template.render(
        **redact(facts),
        trainings=[training(root / folder, STAGES[folder].title) for folder in models],
        style=templates.file("page.css"),
        script=templates.file("page.js"),
    )


def summary(root: Path, manifests: dict[str, dict], models: list[str]) -> str:
    """The run in one sentence."""
    if not models:
        return f"{len(manifests)} of {len(STAGES) - 1} stages are finished; no model has been trained yet."
    size = lineage.parameters(root / models[0])
    steps = ["trained from scratch"] + ["fine-tuned to chat"] * ("sft" in models)
    steps += ["aligned to preferences"] * any(folder in ALIGNED_MODELS for folder in models)
    life = " and ".join([", ".join(steps[:-1]), steps[-1]] if len(steps) > 1 else steps)
    return f"A language model{f' of {lineage.count(size)} parameters' if size else ''}, {life}."


def numbers(root: Path, manifests: dict, models: list[str], evaluation: dict) -> list[tuple[str, str]]:
    """The few figures at the top of the page, as (value, what it is)."""
    found = []
    if models and (size := lineage.parameters(root / models[0])):
        found.append((lineage.count(size), "parameters"))
    for name, scores in list(evaluation["models"].items())[:1]:
        found += [(value, f"{words} of unseen text ({name})") for words, value in lineage.in_words(scores)[:2]]
    log = lineage.log_history(root / "base")
    for key, words in (
        ("tokens_per_second", "tokens per second in pretraining, median"),
        ("mfu", "of the data sheet's FLOP/s used (MFU)"),
        ("mfu_of_measured_peak", "of the FLOP/s of a matrix product here (MFU)"),
    ):
        if values := [value for _, value in points(log, key) if math.isfinite(value)]:
            value = median(values)
            found.append((lineage.count(value) if key == "tokens_per_second" else f"{value:.0%}", words))
    if manifests:
        found.append((duration(sum(manifest["seconds"] for manifest in manifests.values())), "for all stages together"))
    return found


def stages(tree: dict[str, Any], manifests: dict[str, dict]) -> list[dict[str, Any]]:
    """One row for each folder the recipe asks for: name, seconds, headline (None where it is not finished)."""
    wanted = [folder for folder in STAGES if folder != "report" and (folder not in OPTIONAL or folder in tree)]
    return [
        {"folder": f, "time": duration(manifests[f]["seconds"]), "headline": manifests[f]["headline"]}
        if f in manifests
        else {"folder": f, "time": "", "headline": None}
        for f in wanted
    ]


def training(folder: Path, title: str) -> dict[str, Any]:
    """What the page shows of one training stage: its charts and the completions made on the way."""
    log = lineage.log_history(folder)
    charts = {
        name: line_chart(name, [Series(w, points(log, k)) for w, k in lines], zero) for name, lines, zero in CHARTS
    }
    if charts[BITS]:
        charts.pop(PERPLEXITY)  # the same curve, bent
    drawn = [chart for chart in charts.values() if chart]
    by_prompt: dict[str, list] = {}
    for sample in redact(lineage.samples(folder)):
        by_prompt.setdefault(sample["prompt"], []).append(sample)
    alerts = redact(read_rows(alerts_file(folder)))
    return {"folder": folder.name, "title": title, "charts": drawn, "samples": by_prompt, "alerts": alerts}


def points(log: list[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    """The (step, value) pairs of one logged number."""
    return [(entry["step"], float(entry[key])) for entry in log if isinstance(entry.get(key), int | float)]


def evaluation_of(root: Path) -> dict[str, Any]:
    """What the evaluation stage found: scores by model, and answers to the same prompts."""
    found = json.loads((root / "evaluation" / "results.json").read_text(encoding="utf-8"))
    return {"models": found.get("models", {}), "samples": found.get("samples", [])}


def ledger(found: dict[str, Any] | None) -> dict[str, Any] | None:
    """The corpus's ledger (`hf_llm.data.corpus.ledger`) in short: by source, what was read and what is left."""
    if not found:
        return None
    rows = []
    for source, entry in found["sources"].items():
        first, *_, last = entry["rules"].values()
        rows.append((source, first["documents"], first["bytes"], last["documents"], last["bytes"]))
    splits = [f"{name} {left['documents']:,} ({left['bytes'] / 1e6:,.1f} MB)" for name, left in found["splits"].items()]
    return {"rows": rows, "splits": ", ".join(splits)}


def duration(seconds: float) -> str:
    """Seconds as people say them: 8.4 s, 12 min, 3 h 05 min, 2 d 4 h."""
    if seconds < 99.5:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes >= 48 * 60:
        return f"{minutes // 1440} d {minutes % 1440 // 60} h"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"
