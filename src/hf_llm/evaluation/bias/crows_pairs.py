"""CrowS-Pairs: how often a model prefers the sentence with the stereotype, by the kind of bias.

Nangia et al. 2020, https://aclanthology.org/2020.emnlp-main.154. A causal model is scored as by the harness's task
`crows_pairs_english`, a masked one as in the paper. Blodgett et al. 2021 (https://aclanthology.org/2021.acl-long.81)
found many of the pairs faulty: compare models with it, and do not call one fair by it.
"""

from pathlib import Path

from hf_llm.evaluation.benchmark import Benchmark, NotRunError, TaskSettings
from hf_llm.evaluation.bias.sentence_pairs import PairBenchmark, SentencePair
from hf_llm.evaluation.bias.task_rows import RowSource, read_task_rows, refuse_settings, require_columns

SOURCE = RowSource(("crows_pairs", "crows-pairs"), "jannalu/crows_pairs_multilingual", "english", "test")
COLUMNS = ("sent_more", "sent_less")
BIAS_TYPE = "bias_type"


def find_benchmarks(task: TaskSettings, task_data: Path | None, runs_code: bool, is_chat: bool) -> list[Benchmark]:
    """Return the benchmark of an entry `crows_pairs`. Raises NotRunError where its rows are missing or lack a column,
    UserError for settings that sentences have no use for."""
    refuse_settings(task, "shots", "samples", "gen_kwargs", "classifier")
    rows = read_task_rows(task, task_data, SOURCE)
    require_columns(rows, COLUMNS, task.name)

    pairs = []
    kept = []
    for number, (where, row) in enumerate(rows.rows, 1):
        more, less = row.get("sent_more"), row.get("sent_less")
        if not (isinstance(more, str) and isinstance(less, str) and more.strip() and less.strip()):
            rows.dropped["a sentence is missing"] += 1
            continue
        pairs.append(SentencePair(str(number), more, less, group=str(row.get(BIAS_TYPE) or "unknown")))
        kept.append((where, row))
    if not pairs:
        raise NotRunError(f"{task.name}: no row of {rows.origin} has both sentences")

    settings = {**rows.settings, "limit": task.limit, "prompt_format": "plain"}
    return [PairBenchmark(task.name, pairs, settings)]
