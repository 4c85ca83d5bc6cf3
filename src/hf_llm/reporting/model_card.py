"""The model card (README.md) of a finished model folder, made from the manifests of what it was trained on."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from hf_llm.core.manifest import read_manifest
from hf_llm.pipeline.stages import MODELS
from hf_llm.reporting import templates
from hf_llm.reporting.lineage import count, in_words, lineage, parameters, sources, test_scores
from hf_llm.reporting.secrets import redact

# What the Hub accepts under `license` (https://huggingface.co/docs/hub/repositories-licenses); it refuses an upload
# else.
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

MODEL_CLASSES = {  # beside AutoModelForCausalLM
    "reward": "AutoModelForSequenceClassification",
    "masked": "AutoModelForMaskedLM",
    "span_corruption": "AutoModelForSeq2SeqLM",
}
# The Hub's tags beside text-generation; transformers has no pipeline of the last one any more.
PIPELINES = {
    "reward": "text-classification",
    "masked": "fill-mask",
    "span_corruption": "text2text-generation",
}

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


def model_card(folder: Path, repository: str | None = None) -> str:
    """The Markdown text, with its YAML front matter, for the model in `folder`, which must be finished (have a
    manifest).

    `repository` is the Hub id that the usage snippets name; without it they name the folder.
    Nothing secret gets in: settings are redacted, local paths are reduced to their last part.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    assert manifest is not None, f"{folder} is not finished"
    manifests, kind = lineage(folder), kind_of(manifest)
    used = sources(manifests)
    licenses = manifest["licenses"] or sorted({source["license"] for source in used})
    body = (
        templates.markdown()
        .get_template("card.jinja")
        .render(
            name=repository or f"{folder.resolve().parent.name}/{folder.name}",
            identifier=repository or (folder.name if folder.is_absolute() else folder.as_posix()),
            stage=manifest["folder"],
            stages=[name for name in manifests if name in MODELS],
            kind=kind,
            parameters=count(size) if (size := parameters(folder)) else None,
            architecture=architecture(folder),
            model_class=MODEL_CLASSES.get(kind, "AutoModelForCausalLM"),
            remote_code="auto_map" in config_of(folder),
            sources=used,
            licenses=licenses,
            settings=training_settings(manifests),
            metrics=metrics(manifest),
            scores=in_words(test_scores(folder) or {}),
            versions=manifest["versions"],
            lineage={name: entry["digest"] for name, entry in manifests.items()},
            created=manifest["created"],
        )
    )
    return redact(f"---\n{front_matter(manifest, used, licenses, kind).to_yaml()}\n---\n\n{body}")


def kind_of(manifest: dict) -> str:
    """What the model is good for: `base`, `masked`, `span_corruption`, `reward` or `chat`."""
    if manifest["folder"] == "base":
        learnt = manifest["facts"].get("objective", {}).get("kind", "causal")
        return "base" if learnt == "causal" else learnt
    return "reward" if manifest["folder"] == "reward" else "chat"


def front_matter(manifest: dict, used: list[dict[str, str]], licenses: list[str], kind: str) -> ModelCardData:
    """The metadata the Hub reads. The language is left out: nothing here has looked at it."""
    named = {"license_name": "-and-".join(foreign)} if (foreign := sorted(set(licenses) - HUB_LICENSES)) else {}
    listed = sorted(set(licenses) & HUB_LICENSES | ({"other"} if foreign else set())) or ["unknown"]
    return ModelCardData(
        library_name="transformers",
        pipeline_tag=PIPELINES.get(kind, "text-generation"),
        license=listed if len(listed) > 1 else listed[0],
        tags=["hf_llm", manifest["folder"], *(["conversational"] if kind == "chat" else [])],
        datasets=sorted({source["hub"] for source in used if source["hub"]}) or None,
        **named,
    )


def architecture(folder: Path) -> dict[str, Any]:
    """The numbers of config.json that people ask for, in words."""
    config = config_of(folder)
    return {words: config[key] for key, words in ARCHITECTURE.items() if config.get(key) is not None}


def config_of(folder: Path) -> dict[str, Any]:
    """The folder's config.json; empty where there is none."""
    path = folder / "config.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def training_settings(manifests: dict[str, dict]) -> dict[str, dict[str, Any]]:
    """Of each training stage what the recipe set, data and prompts left out (they have their own sections)."""
    found = {}
    for name, manifest in manifests.items():
        if manifest["folder"] in MODELS:
            kept = {
                key: value for key, value in manifest["settings"].items() if not isinstance(value, list | dict | None)
            }
            found[name] = redact({key.split(".", 1)[-1]: value for key, value in kept.items() if "." in key})
    return found


def metrics(manifest: dict) -> dict[str, float]:
    """The last evaluation during training, in words."""
    words = {
        "eval_loss": "loss, validation",
        "eval_perplexity": "perplexity, validation",
        "eval_bits_per_byte": "bits per byte, validation",
        "eval_masked_accuracy": "masked tokens right, validation",
        "eval_target_accuracy": "tokens of gaps right, validation",
        "eval_mean_token_accuracy": "token accuracy, validation",
        "eval_rewards/accuracies": "preferences ranked right, validation",
        "eval_accuracy": "preferences ranked right, held-out pairs",
        "eval_accuracy_low": "its 95% interval, from",
        "eval_accuracy_high": "to",
    }
    found = manifest["facts"].get("metrics", {})
    return {word: found[key] for key, word in words.items() if key in found}
