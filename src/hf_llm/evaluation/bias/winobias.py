"""WinoBias: whether the pronoun that fits a stereotype of an occupation is the more likely one.

Zhao et al. 2018, https://aclanthology.org/N18-2003. The two sentences of a pair differ in pronouns alone: "The
developer argued with the designer because he/she did not like the design". About half of the stereotyped pronouns are
female, so that a model which merely writes `he` more often than `she` has hardly a gap by that. The paper resolves
coreference; here the likelihood of the sentences is compared, which needs no such system.
"""

import re
from collections import Counter
from pathlib import Path

from hf_llm.core.errors import UserError
from hf_llm.data.files.tabular import read_hub_rows, unreadable_file_error
from hf_llm.evaluation.benchmark import Benchmark, NotRunError, TaskSettings
from hf_llm.evaluation.bias.sentence_pairs import PairBenchmark, SentencePair
from hf_llm.evaluation.bias.task_rows import find_task_files, refuse_settings

NAMES = ("winobias", "wino_bias", "WinoBias")
TYPES = ("type1", "type2")
SUFFIXES = (".txt.dev", ".txt.test", ".txt")
HUB = "uclanlp/wino_bias"
SPLITS = ("validation", "test")  # on the Hub: the files' dev and test
PRONOUNS = {"he", "him", "his", "himself", "she", "her", "hers", "herself"}
NOT_A_PAIR = "pairs that differ in more than the pronouns"
_WORD = re.compile(r"[\w']+|\S")
_NUMBER = re.compile(r"^\d+\s+")
_BRACKETS = re.compile(r"[\[\]]")
_SPACE_BEFORE_MARK = re.compile(r" (?=[.,;:!?])| (?=n't\b)| (?='s\b)")


def find_benchmarks(task: TaskSettings, task_data: Path | None, runs_code: bool, is_chat: bool) -> list[Benchmark]:
    """Return the benchmark of an entry `winobias`. Raises NotRunError where its sentences are missing or do not go
    together, UserError for settings that sentences have no use for."""
    refuse_settings(task, "shots", "samples", "gen_kwargs", "classifier")
    dropped: Counter[str] = Counter()
    files = find_task_files(task, task_data, NAMES, SUFFIXES)
    if files:
        pairs = _read_files(task, files, dropped)
        origin = str(files[0].parent)
    else:
        pairs = _read_hub(task)
        origin = f"hub: {HUB}"
    if task.limit is not None:
        pairs = _take_from_each_type(pairs, task.limit)
    if not pairs:
        raise NotRunError(f"{task.name}: {origin} holds no pairs of sentences")

    settings = {"data": origin, "limit": task.limit, "prompt_format": "plain"}
    if dropped:
        settings["dropped"] = dict(dropped)
    return [PairBenchmark(task.name, pairs, settings)]


def _read_files(task: TaskSettings, files: list[Path], dropped: Counter[str]) -> list[SentencePair]:
    """Pair the lines of the files `pro_stereotyped...` and `anti_stereotyped...`, of each type and split."""
    by_name = {path.name: path for path in files}
    pairs = []
    for name, pro_file in sorted(by_name.items()):
        if "pro_stereotyped" not in name:
            continue
        anti_file = by_name.get(name.replace("pro_stereotyped", "anti_stereotyped"))
        if anti_file is None:
            raise NotRunError(f"{task.name}: {pro_file} has no file anti_stereotyped... beside it to be paired with")
        kind = next((kind for kind in TYPES if kind in name), "sentences")
        pro = _read_sentences(pro_file)
        anti = _read_sentences(anti_file)
        if len(pro) != len(anti):
            raise NotRunError(f"{task.name}: {pro_file} has {len(pro)} sentences, {anti_file.name} {len(anti)}")
        for number, (pro_line, anti_line) in enumerate(zip(pro, anti, strict=True), 1):
            if differ_in_pronouns(pro_line, anti_line):
                pairs.append(SentencePair(f"{name} {number}", clean(pro_line), clean(anti_line), kind))
            else:
                dropped[NOT_A_PAIR] += 1
    if not pairs and not dropped:
        raise NotRunError(
            f"{task.name} needs the files pro_stereotyped_type1.txt.dev, anti_stereotyped_type1.txt.dev and so on; "
            f"{files[0].parent} has {', '.join(sorted(by_name)[:5])}"
        )
    return pairs


def _read_sentences(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise unreadable_file_error(path, error) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error.reason}); convert it (`iconv -t utf8`)") from error
    return [_NUMBER.sub("", line.strip()) for line in lines if line.strip()]


def _read_hub(task: TaskSettings) -> list[SentencePair]:
    """Pair the rows (`tokens`, the words of a sentence) of the data set's configurations type1_pro and type1_anti."""
    pairs = []
    for kind in TYPES:
        for split in SPLITS:
            sentences = []
            for side in ("pro", "anti"):
                try:
                    rows = [row for _, row in read_hub_rows(HUB, f"{kind}_{side}", split, streaming=False, take=None)]
                except UserError as error:
                    raise NotRunError(
                        f"{task.name} needs its sentences: put them into evaluate.task_data as winobias/, or name "
                        f"their folder with `{{name: winobias, data: ...}}`. {error}"
                    ) from error
                sentences.append([" ".join(row["tokens"]) for row in rows])
            for number, (pro, anti) in enumerate(zip(*sentences, strict=True), 1):
                pairs.append(SentencePair(f"{kind} {split} {number}", clean(pro), clean(anti), kind))
    return pairs


def differ_in_pronouns(first: str, second: str) -> bool:
    """Whether two sentences are the same but for the gender of their pronouns."""
    first_words = _WORD.findall(clean(first).lower())
    second_words = _WORD.findall(clean(second).lower())
    if len(first_words) != len(second_words) or first_words == second_words:
        return False
    return all(a == b or {a, b} <= PRONOUNS for a, b in zip(first_words, second_words, strict=True))


def clean(sentence: str) -> str:
    """Return a sentence without the brackets around the mentions and without spaces before its marks."""
    return _SPACE_BEFORE_MARK.sub("", _BRACKETS.sub("", sentence)).strip()


def _take_from_each_type(pairs: list[SentencePair], limit: int) -> list[SentencePair]:
    """Return the first pairs of each type, as many of one as of the other, `limit` in all."""
    groups = sorted({pair.group for pair in pairs})
    chosen = []
    for place, group in enumerate(groups):
        members = [pair for pair in pairs if pair.group == group]
        share = limit // len(groups) + (place < limit % len(groups))
        chosen += members[:share]
    return chosen
