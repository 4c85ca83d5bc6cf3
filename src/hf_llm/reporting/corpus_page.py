"""One self-contained HTML page about a corpus: what every rule let through and what it left out, with samples."""

import time
from pathlib import Path
from typing import Any

from hf_llm.core.manifest import read_manifest
from hf_llm.reporting import lineage, templates
from hf_llm.reporting.secrets import redact


def corpus_page(root: Path, title: str) -> str | None:
    """The HTML of the corpus of the run in folder `root`; None where it is not finished."""
    ledger = (read_manifest(root / "corpus") or {}).get("facts", {}).get("ledger")
    if ledger is None:
        return None
    tokens = (read_manifest(root / "tokens") or {}).get("facts", {})
    bytes_per_token = tokens["splits"]["train"]["bytes_per_token"] if tokens else None
    return (
        templates.html()
        .get_template("corpus_page.html")
        .render(
            **redact(
                {
                    "title": title,
                    "made": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
                    "numbers": numbers(ledger, bytes_per_token),
                    "bytes_per_token": bytes_per_token,
                    "sources": [source(name, entry, bytes_per_token) for name, entry in ledger["sources"].items()],
                    "shares": {name: shares(ledger[name]) for name in ("splits", "languages", "licenses")},
                    "samples": ledger["samples"],
                    "cut": ledger["cut_characters"],
                    "seconds": ledger["seconds"],
                    "tokens": {
                        "Train tokens by source": token_shares(tokens.get("tokens_by_source", {})),
                        "Train tokens by language": token_shares(tokens.get("tokens_by_language", {})),
                    },
                    "mix": tokens.get("mix") or [],
                    "tokenizer": (read_manifest(root / "tokenizer") or {}).get("facts", {}).get("report") or {},
                }
            ),
            style=templates.file("page.css"),
        )
    )


def numbers(ledger: dict[str, Any], bytes_per_token: float | None) -> list[tuple[str, str]]:
    """The few figures at the top, as (value, what it is)."""
    rules = [list(entry["rules"].values()) for entry in ledger["sources"].values()]
    read, kept = (sum(steps[place]["documents"] for steps in rules) for place in (0, -1))
    size = sum(steps[-1]["bytes"] for steps in rules)
    found = [
        (lineage.count(read), "documents read"),
        (lineage.count(kept), f"kept ({kept / max(read, 1):.0%})"),
        (f"{size / 1e6:,.1f} MB", "of clean text"),
    ]
    if bytes_per_token:
        found.append((lineage.count(round(size / bytes_per_token)), "tokens, about"))
    return [*found, (str(len(rules)), "sources")]


def source(name: str, entry: dict[str, Any], bytes_per_token: float | None) -> dict[str, Any]:
    """The funnel of one source, a row for every rule, and how long its documents are."""
    rules = list(entry["rules"].items())
    first = max(rules[0][1]["documents"], 1)
    rows = []
    for rule, left in rules:
        words = [f"{reason.replace('_', ' ')} {times:,}" for reason, times in left["dropped"].items()]
        words += [f"{kind.replace('_', ' ')} {times:,}" for kind, times in left["changed"].items()]
        rows.append(
            {
                "rule": rule.replace("_", " "),
                "documents": left["documents"],
                "share": 100 * left["documents"] / first,
                "bytes": left["bytes"],
                "tokens": round(left["bytes"] / bytes_per_token) if bytes_per_token else None,
                "seconds": left["seconds"],
                "dropped": ", ".join(words),
            }
        )
    lengths = [(2**power, count) for power, count in enumerate(entry["lengths"]) if count]
    most = max((count for _, count in lengths), default=1)
    return {
        "name": name,
        "license": entry["license"],
        "rows": rows,
        "lengths": [{"from": low, "documents": count, "share": 100 * count / most} for low, count in lengths],
        "unreadable": [example for found in entry["unreadable"].values() for example in found],
    }


def token_shares(counts: dict[str, dict[str, int]]) -> list[tuple[str, int, float]]:
    """(name, tokens, per cent) of the train split, the largest first."""
    train = counts.get("train", {})
    total = max(sum(train.values()), 1)
    return sorted(((name, n, 100 * n / total) for name, n in train.items()), key=lambda row: -row[1])


def shares(counts: dict[str, dict[str, int]]) -> list[tuple[str, int, int, float]]:
    """(name, documents, bytes, per cent of the bytes), the largest first."""
    total = max(sum(entry["bytes"] for entry in counts.values()), 1)
    rows = [(name, e["documents"], e["bytes"], 100 * e["bytes"] / total) for name, e in counts.items()]
    return sorted(rows, key=lambda row: -row[2])
