"""Render a corpus as a self-contained HTML page: what every filter kept and dropped, with samples."""

import time
from pathlib import Path
from typing import Any

from hf_llm.core.format import format_count, format_megabytes
from hf_llm.core.licenses import normalize_license
from hf_llm.core.manifest import read_manifest
from hf_llm.data.files.read_errors import describe_input
from hf_llm.reporting import templates
from hf_llm.reporting.lineage import format_license_shares
from hf_llm.reporting.secrets import redact_secrets


def render_corpus_page(root: Path, title: str) -> str | None:
    """Render the corpus of the run in folder `root` as HTML; None where it is not finished."""
    ledger = _read_facts(root / "corpus").get("ledger")
    if ledger is None:
        return None

    tokens = _read_facts(root / "tokens")
    bytes_per_token = tokens["splits"]["train"]["bytes_per_token"] if tokens else None
    facts = {
        "title": title,
        "made": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        "numbers": _list_key_numbers(ledger, bytes_per_token),
        "bytes_per_token": bytes_per_token,
        "sources": [describe_source(name, entry, bytes_per_token) for name, entry in ledger["sources"].items()],
        "shares": {
            "splits": shares_by_bytes(ledger["splits"]),
            "languages": shares_by_bytes(ledger["languages"]),
            "licenses": shares_by_bytes(merge_licenses(ledger["licenses"])),
        },
        "samples": ledger["samples"],
        "cut_characters": ledger["cut_characters"],
        "seconds": ledger["seconds"],
        "tokens": {
            "Train tokens by source": _shares_by_tokens(tokens.get("tokens_by_source", {})),
            "Train tokens by language": _shares_by_tokens(tokens.get("tokens_by_language", {})),
        },
        "mix": tokens.get("mix") or [],
        "tokenizer": _read_facts(root / "tokenizer").get("report") or {},
    }
    template = templates.html_environment().get_template("corpus_page.html")
    return template.render(
        **redact_secrets(facts), style=templates.read_asset("page.css"), script=templates.read_asset("page.js")
    )


def _read_facts(folder: Path) -> dict[str, Any]:
    """Read the facts in a folder's manifest; empty where the folder is not finished."""
    manifest = read_manifest(folder) or {}
    return manifest.get("facts", {})


def _list_key_numbers(ledger: dict[str, Any], bytes_per_token: float | None) -> list[tuple[str, str]]:
    """List the few numbers at the top of the page, as (value, title)."""
    read_documents = 0
    kept_documents = 0
    kept_bytes = 0
    for entry in ledger["sources"].values():
        steps = list(entry["rules"].values())
        read_documents += steps[0]["documents"]
        kept_documents += steps[-1]["documents"]
        kept_bytes += steps[-1]["bytes"]

    # Corpora of earlier versions do not have the records that were there.
    inputs = [entry["input"] for entry in ledger["sources"].values() if "input" in entry]
    numbers = []
    if inputs:
        numbers.append((format_count(sum(each["records"] for each in inputs)), "files and records there"))
    numbers += [
        (format_count(read_documents), "documents read"),
        (format_count(kept_documents), f"kept ({kept_documents / max(read_documents, 1):.0%})"),
        (format_megabytes(kept_bytes), "of clean text"),
    ]
    if bytes_per_token:
        numbers.append((format_count(round(kept_bytes / bytes_per_token)), "tokens, about"))
    numbers.append((str(len(ledger["sources"])), "sources"))
    return numbers


def describe_source(name: str, entry: dict[str, Any], bytes_per_token: float | None) -> dict[str, Any]:
    """Collect what the page shows of one source: what was there, a row for every filter, how long the documents are.

    `entry` is the source's part of the ledger. A row's `share` is the percentage of the documents read that this filter
    and those before it have kept.
    """
    steps = list(entry["rules"].items())
    documents_read = max(steps[0][1]["documents"], 1)
    rows = []
    for rule, step in steps:
        changes = [f"{reason.replace('_', ' ')} {count:,}" for reason, count in step["dropped"].items()]
        changes += [f"{kind.replace('_', ' ')} {count:,}" for kind, count in step["changed"].items()]
        rows.append(
            {
                "rule": rule.replace("_", " "),
                "documents": step["documents"],
                "share": 100 * step["documents"] / documents_read,
                "bytes": step["bytes"],
                "tokens": round(step["bytes"] / bytes_per_token) if bytes_per_token else None,
                "seconds": step["seconds"],
                "changes": ", ".join(changes),
            }
        )

    # The ledger counts documents by the power of two that their length in characters reaches.
    lengths = [(2**power, count) for power, count in enumerate(entry["lengths"]) if count]
    largest = max((count for _, count in lengths), default=1)
    return {
        "name": name,
        "license": format_license_shares(entry),
        "input": describe_input(entry)[:1],
        "not_read": _list_not_read(entry),
        "rows": rows,
        "lengths": [{"from": low, "documents": count, "share": 100 * count / largest} for low, count in lengths],
        "unreadable": [example for examples in entry["unreadable"].values() for example in examples],
    }


def _list_not_read(entry: dict[str, Any]) -> list[tuple[str, str, int, str]]:
    """List what of a source did not become documents: (how, reason, records, examples), the largest counts first."""
    counts = entry.get("input", {})
    rows = []
    for reason, count in counts.get("left_out", {}).items():
        rows.append(("left out", reason, count, ", ".join(counts["examples"].get(reason, []))))
    for reason, count in counts.get("unreadable", {}).items():
        rows.append(("unreadable", reason, count, ""))
    return sorted(rows, key=lambda row: (row[0], -row[2], row[1]))


def _shares_by_tokens(tokens_by_split: dict[str, dict[str, int]]) -> list[tuple[str, int, float]]:
    """List (name, tokens, percentage) of the train split, the largest first."""
    counts = tokens_by_split.get("train", {})
    total = max(sum(counts.values()), 1)
    rows = [(name, count, 100 * count / total) for name, count in counts.items()]
    return sorted(rows, key=lambda row: -row[1])


def merge_licenses(counts: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    """Add up the counts of licences that differ only in how their name is written."""
    merged: dict[str, dict[str, int]] = {}
    for name, entry in counts.items():
        total = merged.setdefault(normalize_license(name), {"documents": 0, "bytes": 0})
        total["documents"] += entry["documents"]
        total["bytes"] += entry["bytes"]
    return merged


def shares_by_bytes(counts: dict[str, dict[str, int]]) -> list[tuple[str, int, int, float]]:
    """List (name, documents, bytes, percentage of the bytes), the largest first."""
    total = max(sum(entry["bytes"] for entry in counts.values()), 1)
    rows = [(name, entry["documents"], entry["bytes"], 100 * entry["bytes"] / total) for name, entry in counts.items()]
    return sorted(rows, key=lambda row: -row[2])
