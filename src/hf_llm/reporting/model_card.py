"""Render the model card (README.md) of a finished model folder from the manifests of what it was trained on."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_llm.core.atomic_io import write_text
from hf_llm.core.format import format_count
from hf_llm.core.licenses import (
    OTHER,
    UNKNOWN,
    hub_licenses,
    normalize_license,
    spdx_identifier,
    split_licenses,
)
from hf_llm.core.manifest import read_manifest
from hf_llm.evaluation.benchmark_scores import list_benchmark_scores
from hf_llm.evaluation.metrics import TEST_SPLIT, format_last_evaluation, format_test_scores, score_columns
from hf_llm.pipeline.stages import MODELS, STAGES
from hf_llm.reporting import templates
from hf_llm.reporting.lineage import (
    count_parameters,
    describe_test_split,
    format_share,
    kept_languages,
    kept_licenses,
    list_sources,
    read_lineage,
    read_test_scores,
)
from hf_llm.reporting.secrets import redact_secrets

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData


CARD_FILE = "README.md"
LICENSE_FILE = "LICENSE.md"
MAX_LICENSE_NAME_CHARS = 60  # of the metadata; longer where licences have no short names
SPDX_PAGE = "https://spdx.org/licenses/{}.html"

# Kind of model (`model_kind`) -> its class in transformers, where that is not AutoModelForCausalLM.
MODEL_CLASSES = {
    "reward": "AutoModelForSequenceClassification",
    "masked": "AutoModelForMaskedLM",
    "span_corruption": "AutoModelForSeq2SeqLM",
}
# Kind of model -> its tag on the Hub, where that is not text-generation. transformers no longer has a pipeline for the
# last one.
PIPELINE_TAGS = {
    "reward": "text-classification",
    "masked": "fill-mask",
    "span_corruption": "text2text-generation",
}

# Key of config.json -> its name on the card.
ARCHITECTURE = {
    "model_type": "architecture",
    "num_hidden_layers": "layers",
    "hidden_size": "width",
    "num_attention_heads": "attention heads",
    "num_key_value_heads": "key-value heads",
    "intermediate_size": "MLP width",
    "vocab_size": "vocabulary",
    "max_position_embeddings": "context, tokens",
    "positions": "positions",
    "num_experts": "experts of a layer",
    "exports_to": "transformers' class of the same weights",
}


def write_model_card(folder: Path, repository: str | None = None) -> None:
    """Write the card of a finished model folder, and the LICENSE.md that its metadata point to where they do."""
    folder = Path(folder)
    write_text(folder / CARD_FILE, render_model_card(folder, repository))
    licenses = _licenses_of_model(folder)
    if _license_metadata(licenses).get("license_link") == LICENSE_FILE:
        write_text(folder / LICENSE_FILE, render_license_file(licenses))


def render_license_file(licenses: list[str]) -> str:
    """Render the file that says under which licences a model's training texts are."""
    lines = ["# Licences of the training texts", ""]
    lines.append(
        "This model was trained on texts under the licences below. They are those of the texts, as the recipe or the "
        "texts themselves state them; nobody has decided here which licence the model has."
    )
    lines.append("")
    for name in licenses:
        spdx = spdx_identifier(name)
        lines.append(f"- [{spdx}]({SPDX_PAGE.format(spdx)})" if spdx and " " not in spdx else f"- {name}")
    return "\n".join(lines) + "\n"


def write_adapter_card(folder: Path, stage: str, licenses: list[str]) -> None:
    """Write the card of the LoRA adapter in `folder`, beside the merged model of `stage`, in place of PEFT's template.

    It is written before the model's manifest, which counts the adapter's files.
    """
    from huggingface_hub import ModelCardData

    template = templates.markdown_environment().get_template("adapter_card.jinja")
    tags = ["hf_llm", stage, "lora"]
    metadata = ModelCardData(library_name="peft", tags=tags, **_license_metadata(licenses, folder_of_file=".."))
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    body = template.render(
        stage=stage, title=STAGES[stage].title if stage in STAGES else stage, rank=config.get("r"),
        alpha=config.get("lora_alpha"), modules=sorted(config.get("target_modules") or []),
    )  # fmt: skip
    write_text(folder / CARD_FILE, redact_secrets(f"---\n{metadata.to_yaml()}\n---\n\n{body}"))


def render_model_card(folder: Path, repository: str | None = None) -> str:
    """Render the card of the model in `folder`: Markdown with YAML front matter. The folder must be finished.

    `repository` is the Hub id that the usage snippets name; without it they name the folder. Secrets are redacted, and
    local paths are reduced to their last part.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    assert manifest is not None, f"{folder} is not finished"

    manifests = read_lineage(folder)
    config = _read_config(folder)
    kind = model_kind(manifest)
    sources = list_sources(manifests)
    licenses = _licenses_of_model(folder)
    scores = read_test_scores(folder) or {}
    parameters = count_parameters(folder)

    name = repository or f"{folder.resolve().parent.name}/{folder.name}"
    template = templates.markdown_environment().get_template("card.jinja")
    body = template.render(
        name=name,
        identifier=repository or (folder.name if folder.is_absolute() else folder.as_posix()),
        stages=[name for name in manifests if name in MODELS],
        kind=kind,
        from_scratch="base" in manifests and not manifests["base"]["settings"].get("pretrain.start_from"),
        parameters=format_count(parameters) if parameters else None,
        architecture={name: config[key] for key, name in ARCHITECTURE.items() if config.get(key) is not None},
        model_class=MODEL_CLASSES.get(kind, "AutoModelForCausalLM"),
        remote_code="auto_map" in config,
        sources=sources,
        licenses=licenses,
        shares=[(name, format_share(share)) for name, share in kept_licenses(manifests)],
        settings=_list_training_settings(manifests),
        metrics=format_last_evaluation(manifest["facts"].get("metrics", {}), _evaluated_on(manifest)),
        scores=format_test_scores(scores),
        benchmarks=list_benchmark_scores(scores),
        test_split=" ".join(describe_test_split({folder.name: manifests}, _tested_tokens(folder))) if scores else "",
        versions=manifest["versions"],
        digests={name: entry["digest"] for name, entry in manifests.items()},
        created=manifest["created"],
    )
    front_matter = build_front_matter(manifest, sources, licenses, kind, kept_languages(manifests), name, scores)
    return redact_secrets(f"---\n{front_matter.to_yaml()}\n---\n\n{body}")


def model_kind(manifest: dict) -> str:
    """Return what the model can be used for: `base`, `masked`, `span_corruption`, `reward` or `chat`."""
    if manifest["folder"] == "base":
        objective = manifest["facts"].get("objective", {}).get("kind", "causal")
        return "base" if objective == "causal" else objective
    return "reward" if manifest["folder"] == "reward" else "chat"


def build_front_matter(
    manifest: dict,
    sources: list[dict[str, str]],
    licenses: list[str],
    kind: str,
    languages: list[str] | None = None,
    name: str = "",
    scores: dict[str, Any] | None = None,
) -> "ModelCardData":
    """Build the metadata that the Hub reads: with the languages that the corpus has measured, and the test scores."""
    from huggingface_hub import ModelCardData

    tags = ["hf_llm", manifest["folder"]]
    if kind == "chat":
        tags.append("conversational")

    results = _list_evaluation_results(scores or {}, PIPELINE_TAGS.get(kind, "text-generation"))
    return ModelCardData(
        library_name="transformers",
        pipeline_tag=PIPELINE_TAGS.get(kind, "text-generation"),
        language=languages or None,
        tags=tags,
        datasets=sorted({source["hub"] for source in sources if source["hub"]}) or None,
        **({"model_name": name, "eval_results": results} if results else {}),
        **_license_metadata(licenses),
    )


def _list_evaluation_results(scores: dict[str, Any], task: str) -> "list[EvalResult]":
    """List a model's scores on the test split, as the Hub's `model-index` has them."""
    from huggingface_hub import EvalResult

    results = []
    for metric in score_columns([scores]):
        if metric.scored_on != TEST_SPLIT:
            continue
        results.append(
            EvalResult(
                task_type=task,
                dataset_type="text",
                dataset_name="test split of the model's own corpus",
                dataset_split="test",
                metric_type=metric.key,
                metric_name=metric.heading,
                metric_value=scores[metric.key],
                metric_args={"tokens": scores["tokens"]} if "tokens" in scores else None,
            )
        )
    for row in list_benchmark_scores(scores):
        results.append(
            EvalResult(
                task_type=task,
                dataset_type="benchmark",
                dataset_name=row.benchmark,
                metric_type=row.score.metric,
                metric_name=row.score.metric,
                metric_value=row.score.value,
                metric_args={"documents": row.score.documents, **row.settings},
            )
        )
    return results


def _license_metadata(licenses: list[str], folder_of_file: str = "") -> dict[str, Any]:
    """Return `license` for the Hub, and where a licence is not in the Hub's list `license_name` and `license_link`.

    The link is SPDX's page of that licence, or the LICENSE.md beside the card (in `folder_of_file`), which names all.
    """
    known, foreign = hub_licenses(licenses)
    listed = sorted([*known, OTHER]) if foreign else known
    listed = listed or [UNKNOWN]
    metadata: dict[str, Any] = {"license": listed if len(listed) > 1 else listed[0]}
    if not foreign:
        return metadata

    name = "-and-".join(_slug(piece) for piece in foreign)
    if len(name) > MAX_LICENSE_NAME_CHARS or not name.strip("-"):
        name = "several-licenses" if len(foreign) > 1 else "own-license"
    spdx = spdx_identifier(foreign[0]) if len(foreign) == 1 else None
    link = f"{folder_of_file}/{LICENSE_FILE}" if folder_of_file else LICENSE_FILE
    metadata["license_name"] = name
    metadata["license_link"] = SPDX_PAGE.format(spdx) if spdx and " " not in spdx else link
    return metadata


def _slug(text: str) -> str:
    """Return a text as the Hub wants `license_name`: small letters, digits, dots and dashes."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")


def _licenses_of_model(folder: Path) -> list[str]:
    """Return the licences of everything that a model was trained on, each by its one name."""
    manifest = read_manifest(folder) or {}
    names = manifest.get("licenses") or [source["license"] for source in list_sources(read_lineage(folder))]
    pieces = {piece for name in names for piece in split_licenses(normalize_license(name))}
    return sorted(pieces)


def _evaluated_on(manifest: dict) -> str:
    """Return what the training evaluated the model on, in words."""
    stage = STAGES.get(manifest["folder"])
    return (stage and stage.evaluated_on) or "the validation split"


def _tested_tokens(folder: Path) -> str | None:
    """Return the digest of the token shards that the run's evaluation has read; None where there is none."""
    evaluation = read_manifest(folder.parent / "evaluation") or {}
    return evaluation.get("inputs", {}).get("tokens")


def _read_config(folder: Path) -> dict[str, Any]:
    """Read the folder's config.json; empty where there is none."""
    path = folder / "config.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _list_training_settings(manifests: dict[str, dict]) -> dict[str, dict[str, Any]]:
    """List what the recipe set for each training stage; not data and prompts, which have their own sections."""
    settings_by_stage = {}
    for name, manifest in manifests.items():
        if manifest["folder"] not in MODELS:
            continue
        settings = {}
        for key, value in manifest["settings"].items():
            _, _, key_in_section = key.partition(".")
            if key_in_section and not isinstance(value, list | dict | None):
                settings[key_in_section] = value
        settings_by_stage[name] = redact_secrets(settings)
    return settings_by_stage
