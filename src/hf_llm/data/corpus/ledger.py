"""`corpus/ledger.json`: documents, bytes and seconds of every rule by source, what was left out why, and what is left.

    {"sources": {name: {"license": ..., "rules": {rule: {"documents", "bytes", "seconds", "dropped", "changed"}},
                        "unreadable": {reason: [examples]}, "lengths": [documents by floor(log2(characters))]}},
     "splits" | "licenses" | "languages": {name: {"documents", "bytes"}},
     "learned": {rule: what was measured}, "evaluation_sets": [{"name", "rows", "long", "short", "too_short", "form"}],
     "samples": {rule: [{"id", "url", "source", "reason", "because", "kept", "text"}]}}

Documents and bytes are those a rule has let through. Seconds are of processor time summed over processes, to the tenth;
`seconds` has those of each pass. `cut_characters` were cut as passages that stand elsewhere.
"""

from collections import Counter

from hf_llm.data.corpus.dropped import merged_samples
from hf_llm.data.corpus.sources import Part
from hf_llm.data.files.read_errors import EXAMPLES


def make_ledger(parts: list[Part], passes: dict[str, list[dict]]) -> dict:
    """The ledger of a corpus from what its tasks have returned, by pass; the first is the cleaning of the parts."""
    cleaned, *later = passes.values()
    shards = [results for results in later if results and "flows" in results[0]]
    sources: dict[str, dict] = {}
    order = _rule_order(parts, cleaned)
    for part, result in zip(parts, cleaned, strict=True):
        _add_part(sources, order, part, result)
    for results in shards:
        _add_pass(sources, results)
    for entry in sources.values():
        for rule in entry["rules"].values():
            rule["seconds"] = round(rule["seconds"], 1)
    last = shards[-1]
    for name, lengths in _summed_lists(last, "lengths").items():
        sources[name]["lengths"] = lengths
    return {
        "sources": sources,
        **{name: _totals(last, name) for name in ("splits", "licenses", "languages")},
        "samples": merged_samples(
            [result["rejected"]["samples"] for results in (cleaned, *shards) for result in results]
        ),
        "cut_characters": sum(result.get("cut_characters", 0) for result in last),
        "seconds": {name: round(sum(result["seconds"] for result in results), 1) for name, results in passes.items()},
    }


def _add_part(sources: dict[str, dict], order: dict[str, list[str]], part: Part, result: dict) -> None:
    entry = sources.setdefault(
        part.label, {"license": part.source.license, "rules": {}, "unreadable": {}, "lengths": []}
    )
    if part.source.license not in entry["license"].split(", "):  # sources may have one name
        entry["license"] += f", {part.source.license}"
    for reason, examples in result["faults"]["examples"].items():
        entry["unreadable"][reason] = [*entry["unreadable"].get(reason, []), *examples][:EXAMPLES]
    flows = {flow["rule"]: flow for flow in result["flows"][:-1]}
    before: dict = {}
    for name in order[part.label]:
        # A rule that judges other parts of this name only has let all of this one through.
        flow = flows.get(name) or {**_empty(), "documents": before["documents"], "bytes": before["bytes"]}
        rule = entry["rules"].setdefault(name, _empty())
        for unit in ("documents", "bytes", "seconds"):
            rule[unit] += flow[unit]
        for kind in ("dropped", "changed"):
            rule[kind] = dict(Counter(rule[kind]) + Counter(flow[kind]))
        before = flow


def _rule_order(parts: list[Part], cleaned: list[dict]) -> dict[str, list[str]]:
    """By source name, every rule that judges some part of it, in an order that agrees with each part's."""
    order: dict[str, list[str]] = {}
    for part, result in zip(parts, cleaned, strict=True):
        known, place = order.setdefault(part.label, []), 0
        for flow in result["flows"][:-1]:
            if flow["rule"] in known:
                place = known.index(flow["rule"]) + 1
            else:
                known.insert(place, flow["rule"])
                place += 1
    return order


def _add_pass(sources: dict[str, dict], results: list[dict]) -> None:
    """The rules of one of the later passes: each names what it has left of every source."""
    rules = list(dict.fromkeys(rule for result in results for rule in result["flows"]))
    for rule in (name for name in rules if name != "before"):
        left = _totals([{rule: result["flows"][rule]} for result in results], rule)
        for label, entry in sources.items():
            counts = {**_empty(), **left.get(label, {})}
            before = list(entry["rules"].values())[-1]["documents"]
            if before > counts["documents"]:
                counts["dropped"] = {_REASONS[rule]: before - counts["documents"]}
            entry["rules"][rule] = counts


_REASONS = {
    "exact_duplicates": "duplicate",
    "near_duplicates": "near_duplicate",
    "repeated_passages": "too_short_when_cut",
}


def _empty() -> dict:
    return {"documents": 0, "bytes": 0, "seconds": 0.0, "dropped": {}, "changed": {}}


def _totals(results: list[dict], name: str) -> dict[str, dict[str, int]]:
    total: dict[str, dict[str, int]] = {}
    for result in results:
        for key, (documents, size) in result[name].items():
            counts = total.setdefault(key, {"documents": 0, "bytes": 0})
            counts["documents"] += documents
            counts["bytes"] += size
    return dict(sorted(total.items()))


def _summed_lists(results: list[dict], name: str) -> dict[str, list[int]]:
    total: dict[str, list[int]] = {}
    for result in results:
        for key, values in result[name].items():
            longer, shorter = sorted((total.get(key, []), values), key=len, reverse=True)
            total[key] = [a + b for a, b in zip(longer, [*shorter, *[0] * (len(longer) - len(shorter))], strict=True)]
    return total
