"""Render the model card (README.md) of a finished model folder from the manifests of what it was trained on."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from hf_llm.core.format import format_count
from hf_llm.core.manifest import read_manifest
from hf_llm.evaluation.metrics import format_last_evaluation, format_scores
from hf_llm.pipeline.stages import MODELS
from hf_llm.reporting import templates
from hf_llm.reporting.lineage import count_parameters, list_sources, read_lineage, read_test_scores
from hf_llm.reporting.secrets import redact_secrets

# What the Hub accepts under `license` (https://huggingface.co/docs/hub/repositories-licenses); it refuses an upload
# with any other.
HUB_LICENSES = frozenset(
    """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
    afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
    cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0
    lgpl lgpl-2.1 lgpl-3.0 isc lppl-1.3c ms-pl mpl-2.0 odc-by odbl openrail++ osl-3.0 postgresql ofl-1.1 ncsa
    unlicense zlib pddl lgpl-lr unknown other
    """.split()  # noqa: SIM905 - readable, and short enough to compare with the Hub's page
)

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
    licenses = manifest["licenses"] or sorted({source["license"] for source in sources})
    parameters = count_parameters(folder)

    template = templates.markdown_environment().get_template("card.jinja")
    body = template.render(
        name=repository or f"{folder.resolve().parent.name}/{folder.name}",
        identifier=repository or (folder.name if folder.is_absolute() else folder.as_posix()),
        stages=[name for name in manifests if name in MODELS],
        kind=kind,
        parameters=format_count(parameters) if parameters else None,
        architecture={name: config[key] for key, name in ARCHITECTURE.items() if config.get(key) is not None},
        model_class=MODEL_CLASSES.get(kind, "AutoModelForCausalLM"),
        remote_code="auto_map" in config,
        sources=sources,
        licenses=licenses,
        settings=_list_training_settings(manifests),
        metrics=format_last_evaluation(manifest["facts"].get("metrics", {})),
        scores=format_scores(read_test_scores(folder) or {}),
        versions=manifest["versions"],
        digests={name: entry["digest"] for name, entry in manifests.items()},
        created=manifest["created"],
    )
    front_matter = build_front_matter(manifest, sources, licenses, kind)
    return redact_secrets(f"---\n{front_matter.to_yaml()}\n---\n\n{body}")


def model_kind(manifest: dict) -> str:
    """Return what the model can be used for: `base`, `masked`, `span_corruption`, `reward` or `chat`."""
    if manifest["folder"] == "base":
        objective = manifest["facts"].get("objective", {}).get("kind", "causal")
        return "base" if objective == "causal" else objective
    return "reward" if manifest["folder"] == "reward" else "chat"


def build_front_matter(manifest: dict, sources: list[dict[str, str]], licenses: list[str], kind: str) -> ModelCardData:
    """Build the metadata that the Hub reads. The language is left out: nothing has measured it."""
    known = set(licenses) & HUB_LICENSES
    foreign = set(licenses) - HUB_LICENSES
    if foreign:
        known.add("other")
    hub_licenses = sorted(known) or ["unknown"]

    tags = ["hf_llm", manifest["folder"]]
    if kind == "chat":
        tags.append("conversational")

    return ModelCardData(
        library_name="transformers",
        pipeline_tag=PIPELINE_TAGS.get(kind, "text-generation"),
        license=hub_licenses if len(hub_licenses) > 1 else hub_licenses[0],
        tags=tags,
        datasets=sorted({source["hub"] for source in sources if source["hub"]}) or None,
        **({"license_name": "-and-".join(sorted(foreign))} if foreign else {}),
    )


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
