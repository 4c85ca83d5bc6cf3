"""`corpus/ledger.json`: what was there, what of it became documents, and what every rule kept and dropped, by source.

    {"sources": {name: {"license": as the recipe states it, "licenses": {name: {"documents", "bytes"}},
                        "input": {"records", "used", "left_out": {reason: records}, "unreadable": {reason: records},
                                  "examples": {reason: [names of what was left out]}},
                        "rules": {rule: {"documents", "bytes", "seconds", "dropped", "changed"}},
                        "unreadable": {reason: [examples]}, "lengths": [documents by floor(log2(characters))]}},
     "splits" | "licenses" | "languages": {name: {"documents", "bytes"}},
     "learned": {rule: what was measured}, "evaluation_sets": [{"name", "rows", "long", "short", "too_short", "form"}],
     "samples": {rule: [{"id", "url", "source", "reason", "because", "kept", "text"}]}}

The input's records are all that was there: files, or the rows, pages and records in them. They add up: `records` is
`used`, and all that was `left_out` by kind, and all that was `unreadable`. What was used became the documents of the
rule `read`: one each, several where a long file is cut, one of many where posts are joined to a thread. From then on a
rule has what the rule before it kept, less what it dropped. Ledgers of older runs have no `input`.

Documents and bytes are those that a rule has kept. Seconds are of processor time summed over processes, to the tenth;
`seconds` has those of each pass. `cut_characters` were cut as passages that stand elsewhere.
"""

from collections import Counter

from hf_llm.data.corpus.dropped import merge_samples
from hf_llm.data.corpus.sources import ReadTask
from hf_llm.data.files.read_errors import ReadErrors

# Why the rules of the later passes drop documents.
_REASONS = {
    "exact_duplicates": "duplicate",
    "near_duplicates": "near_duplicate",
    "repeated_passages": "too_short_when_cut",
}


def make_ledger(tasks: list[ReadTask], passes: dict[str, list[dict]]) -> dict:
    """Make the ledger of a corpus from what its tasks have returned, by pass; the first cleans the read tasks."""
    cleaned, *later = passes.values()
    shard_passes = [results for results in later if results and "flows" in results[0]]
    last = shard_passes[-1]

    sources: dict[str, dict] = {}
    rule_order = _order_rules(tasks, cleaned)
    for task, result in zip(tasks, cleaned, strict=True):
        _add_read_task(sources, rule_order, task, result)
    for label, errors in sum_read_errors(tasks, cleaned).items():
        sources[label]["input"] = _describe_records(errors)
        sources[label]["unreadable"] = errors.examples
    for results in shard_passes:
        _add_shard_pass(sources, results)

    for entry in sources.values():
        for rule in entry["rules"].values():
            rule["seconds"] = round(rule["seconds"], 1)
    for name, counts in _sum_counts(last, "source_licenses").items():
        source, _, license = name.rpartition("\t")
        sources[source]["licenses"][license] = counts
    for name, lengths in _sum_lists(last, "lengths").items():
        sources[name]["lengths"] = lengths

    samples = []
    seconds = {}
    for results in (cleaned, *shard_passes):
        samples += [result["rejected"]["samples"] for result in results]
    for name, results in passes.items():
        seconds[name] = round(sum(result["seconds"] for result in results), 1)

    return {
        "sources": sources,
        "splits": _sum_counts(last, "splits"),
        "licenses": _sum_counts(last, "licenses"),
        "languages": _sum_counts(last, "languages"),
        "samples": merge_samples(samples),
        "cut_characters": sum(result.get("cut_characters", 0) for result in last),
        "seconds": seconds,
    }


def sum_read_errors(tasks: list[ReadTask], cleaned: list[dict]) -> dict[str, ReadErrors]:
    """Add up what was there, left out and unreadable, by source: in the lists of files, and in the files."""
    total: dict[str, ReadErrors] = {}
    for task, result in zip(tasks, cleaned, strict=True):
        errors = total.setdefault(task.label, ReadErrors())
        errors.add(task.listing)
        counted = ReadErrors(**result["faults"])
        counted.dropped = Counter(counted.dropped)
        counted.left_out = Counter(counted.left_out)
        errors.add(counted)
    return total


def _describe_records(errors: ReadErrors) -> dict:
    return {
        "records": errors.records,
        "used": errors.used,
        "left_out": dict(errors.left_out.most_common()),
        "unreadable": dict(errors.dropped.most_common()),
        "examples": errors.left_out_examples,
    }


def _add_read_task(sources: dict[str, dict], rule_order: dict[str, list[str]], task: ReadTask, result: dict) -> None:
    """Add what one read task has read and what its filters have kept to the entry of its source."""
    license = task.source.license
    new_entry = {"license": license, "licenses": {}, "input": {}, "rules": {}, "unreadable": {}, "lengths": []}
    entry = sources.setdefault(task.label, new_entry)

    # Sources may have one name, and different licences.
    known_licenses = entry["license"].split(", ")
    if license not in known_licenses:
        entry["license"] += f", {license}"

    filter_stats = result["flows"][:-1]  # the last step writes
    stats_by_rule = {stats["rule"]: stats for stats in filter_stats}
    previous: dict = {}
    for name in rule_order[task.label]:
        stats = stats_by_rule.get(name)
        if stats is None:
            # A rule that judges other tasks of this source only has kept all of this one.
            stats = _empty_counts()
            stats["documents"] = previous["documents"]
            stats["bytes"] = previous["bytes"]
        total = entry["rules"].setdefault(name, _empty_counts())
        _add_stats(total, stats)
        previous = stats


def _add_stats(total: dict, stats: dict) -> None:
    for unit in ("documents", "bytes", "seconds"):
        total[unit] += stats[unit]
    for kind in ("dropped", "changed"):
        total[kind] = dict(Counter(total[kind]) + Counter(stats[kind]))


def _order_rules(tasks: list[ReadTask], cleaned: list[dict]) -> dict[str, list[str]]:
    """List by source every rule that judges some task of it, in an order that agrees with each task's."""
    order: dict[str, list[str]] = {}
    for task, result in zip(tasks, cleaned, strict=True):
        known = order.setdefault(task.label, [])
        position = 0
        for stats in result["flows"][:-1]:
            if stats["rule"] in known:
                position = known.index(stats["rule"]) + 1
            else:
                known.insert(position, stats["rule"])
                position += 1
    return order


def _add_shard_pass(sources: dict[str, dict], results: list[dict]) -> None:
    """Add the rules of one of the later passes, whose tasks say what each rule has kept of every source."""
    kept_by_task = [result["flows"] for result in results]
    rules = list(dict.fromkeys(rule for kept in kept_by_task for rule in kept))
    for rule in rules:
        if rule == "before":  # what the pass has read
            continue
        kept = _sum_counts(kept_by_task, rule)
        for label, entry in sources.items():
            counts = _empty_counts()
            counts |= kept.get(label, {})

            *_, previous = entry["rules"].values()
            dropped = previous["documents"] - counts["documents"]
            if dropped > 0:
                counts["dropped"] = {_REASONS[rule]: dropped}
            entry["rules"][rule] = counts


def _empty_counts() -> dict:
    return {"documents": 0, "bytes": 0, "seconds": 0.0, "dropped": {}, "changed": {}}


def _sum_counts(results: list[dict], name: str) -> dict[str, dict[str, int]]:
    """Sum the documents and bytes of each key of `result[name]` over all results, in order of the keys."""
    total: dict[str, dict[str, int]] = {}
    for result in results:
        for key, (documents, size) in result.get(name, {}).items():  # a build begun by an earlier version lacks some
            counts = total.setdefault(key, {"documents": 0, "bytes": 0})
            counts["documents"] += documents
            counts["bytes"] += size
    return dict(sorted(total.items()))


def _sum_lists(results: list[dict], name: str) -> dict[str, list[int]]:
    """Sum the lists of each key of `result[name]` over all results, item by item; the shorter one counts as ending in
    0."""
    total: dict[str, list[int]] = {}
    for result in results:
        for key, values in result[name].items():
            sums = total.setdefault(key, [])
            sums += [0] * (len(values) - len(sums))
            for index, value in enumerate(values):
                sums[index] += value
    return total
