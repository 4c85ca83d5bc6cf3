"""Score a model on problems whose answer is a program: generate completions, run them with the tests, count."""

import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from hf_llm.core.console import print_main
from hf_llm.core.progress import open_progress_bar
from hf_llm.evaluation.benchmark import Benchmark, NotRunError, Score, TaskSettings, score_shares
from hf_llm.evaluation.code.completed_code import complete_function, cut_at_stop, extract_code
from hf_llm.evaluation.code.completion_settings import SEED, CompletionSettings
from hf_llm.evaluation.code.pass_at_k import estimate_pass_at_k, list_ks
from hf_llm.evaluation.code.problem_sets import Problem
from hf_llm.evaluation.code.sandbox import ProgramResult, Sandbox

if TYPE_CHECKING:
    from hf_llm.evaluation.evaluated_model import EvaluatedModel
    from hf_llm.evaluation.journal import Journal

VERSION = 1  # of the method; another one scores everything again
COMPLETIONS_PER_BATCH = 32  # generated together

Rows = list[dict[str, Any]]


class CodeBenchmark(Benchmark):
    """HumanEval or MBPP in one prompt format.

    The completions of a batch of problems are generated, then their programs run, a few at once. Sampled completions
    depend on the problem alone, and not on the batch or the process.
    """

    def __init__(
        self,
        name: str,
        task: TaskSettings,
        problems: list[Problem],
        source: str,
        completion: CompletionSettings,
        sandbox: Sandbox,
        is_chat: bool,
        shots: int,
    ):
        self.name = name
        self.samples = task.samples
        self.problems = {problem.id: problem for problem in problems[: task.limit]}
        self.completion = completion
        self.sandbox = sandbox
        self.is_chat = is_chat
        self.settings: dict[str, Any] = {
            "shots": shots,
            "prompt_format": "chat" if is_chat else "plain",
            "limit": task.limit,
            "data": source,
            "samples": task.samples,
            "generation": completion.describe(),
            "max_new_tokens": completion.max_new_tokens,
            "python": sandbox.python_version,
        }

    def identify(self) -> dict[str, Any]:
        """Return what the scores depend on besides the model."""
        problems = json.dumps([asdict(problem) for problem in self.problems.values()])
        return {
            "version": VERSION,
            "problems": hashlib.sha256(problems.encode()).hexdigest(),
            "prompt_format": self.settings["prompt_format"],
            "samples": self.samples,
            "completion": asdict(self.completion),
            "limits": asdict(self.sandbox.limits),
            "python": self.sandbox.python_version.rpartition(".")[0],
        }

    def read_texts(self) -> Iterator[tuple[str, list[str]]]:
        """Yield the id of each problem with its question and its solution."""
        for problem in self.problems.values():
            yield problem.id, [problem.question, problem.solution]

    def score_documents(self, model: "EvaluatedModel", journal: "Journal") -> None:
        """Generate and run the completions of the problems that the journal lacks.

        A row has `id`, `prompt`, `response` (the first completion), `target`, `scores` (`pass@1` ...), and all
        `completions`, each its `text`, `outcome` and `detail`; `cut_tokens` are those that the prompt lost because the
        context has no room for them. Raises NotRunError for a model that cannot answer, UserError where the sandbox
        stops working.
        """
        completion = self.fit_context(model)
        problems = [self.problems[name] for name in journal.select_documents(self.problems)]
        per_batch = max(1, COMPLETIONS_PER_BATCH // self.samples)

        with open_progress_bar(total=len(problems), desc=self.name, disable=model.rank != 0, leave=False) as progress:
            for start in range(0, len(problems), per_batch):
                batch = problems[start : start + per_batch]
                prompts = [self.encode(model, problem, completion) for problem in batch]
                completions = self.generate(model, batch, [ids for ids, _ in prompts], completion)
                rows = self.run_completions(batch, completions)
                for row, (_, cut_tokens) in zip(rows, prompts, strict=True):
                    row["cut_tokens"] = cut_tokens
                journal.append(rows)
                progress.update(len(batch))

    def describe_documents(self, rows: list[dict[str, Any]]) -> list[str]:
        """Return a sentence about what the programs of these rows came to."""
        return [describe_rows(rows)]

    def fit_context(self, model: "EvaluatedModel") -> CompletionSettings:
        """Return the settings with at most half of the model's context for a completion, said where it is less."""
        from hf_llm.model.load import CAUSAL, find_objective

        if find_objective(model.model.config) != CAUSAL:
            raise NotRunError(f"{self.name} needs a model that continues text, and {model.path} does not")
        if self.is_chat and not model.tokenizer.chat_template:
            raise NotRunError(f"{self.name}: {model.path} has no chat template; set prompt_format: plain for the task")
        room = min(self.completion.max_new_tokens, model.context // 2)
        if room < self.completion.max_new_tokens:
            print_main(
                f"  {self.name}: completions of at most {room} tokens, and not {self.completion.max_new_tokens}: half "
                f"of the context of {model.context}"
            )
        self.settings["max_new_tokens"] = room
        return replace(self.completion, max_new_tokens=room)

    def encode(
        self, model: "EvaluatedModel", problem: Problem, completion: CompletionSettings
    ) -> tuple[list[int], int]:
        """Return the token ids of a problem's prompt, and how many tokens it lost at its beginning to fit."""
        from hf_llm.inference.generate import encode_conversation, max_prompt_tokens, shorten_last_message
        from hf_llm.tokenization.text_boundaries import encode_prompt

        tokenizer = model.tokenizer
        limit = max_prompt_tokens(model.model, completion.max_new_tokens)
        if self.is_chat:
            conversation = [{"role": "user", "content": problem.request}]
            conversation, cut_tokens = shorten_last_message(tokenizer, conversation, limit)
            return encode_conversation(tokenizer, conversation), cut_tokens
        length = len(tokenizer(problem.plain_prompt, add_special_tokens=False, verbose=False)["input_ids"])
        token_ids = encode_prompt(tokenizer, problem.plain_prompt, limit)
        return token_ids, max(0, length - limit)

    def generate(
        self,
        model: "EvaluatedModel",
        problems: list[Problem],
        prompts: list[list[int]],
        completion: CompletionSettings,
    ) -> list[list[str]]:
        """Return the completions of each problem, `samples` of them."""
        if completion.is_greedy:
            return [[text] for text in self.generate_texts(model, prompts, completion, None)]
        completions = []
        for problem, prompt in zip(problems, prompts, strict=True):
            texts: list[str] = []
            while len(texts) < self.samples:
                copies = min(COMPLETIONS_PER_BATCH, self.samples - len(texts))
                seed = zlib.crc32(f"{SEED} {problem.id} {len(texts)}".encode())
                texts += self.generate_texts(model, [prompt] * copies, completion, seed)
            completions.append(texts)
        return completions

    def generate_texts(
        self, model: "EvaluatedModel", prompts: list[list[int]], completion: CompletionSettings, seed: int | None
    ) -> list[str]:
        """Return one completion of each prompt, up to where it ends."""
        from transformers import StoppingCriteriaList

        from hf_llm.evaluation.code.stop_at_text import StopAtText
        from hf_llm.inference.generate import generate_tokens

        settings = dict(completion.sampling)
        ends_at_stops = not self.is_chat and bool(completion.stops)
        if ends_at_stops:
            criterion = StopAtText(model.tokenizer, completion.stops)
            settings["stopping_criteria"] = StoppingCriteriaList([criterion])
        tokens = generate_tokens(model.model, model.tokenizer, prompts, completion.max_new_tokens, seed, **settings)
        texts = model.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        if ends_at_stops:
            return [cut_at_stop(text, completion.stops) for text in texts]
        return texts

    def run_completions(self, problems: list[Problem], completions: list[list[str]]) -> Rows:
        """Run the programs of these completions, and return the rows of the problems for the journal."""
        programs = []
        for problem, texts in zip(problems, completions, strict=True):
            programs += [(self.build_program(problem, text), problem.tests) for text in texts]
        results = iter(self.sandbox.check_programs(programs))

        rows = []
        for problem, texts in zip(problems, completions, strict=True):
            described = [describe_completion(text, next(results)) for text in texts]
            passed = sum(entry["outcome"] == "passed" for entry in described)
            rows.append(
                {
                    "id": problem.id,
                    "prompt": problem.request if self.is_chat else problem.plain_prompt,
                    "response": texts[0],
                    "target": problem.solution,
                    "scores": {f"pass@{k}": estimate_pass_at_k(len(texts), passed, k) for k in list_ks(len(texts))},
                    "completions": described,
                }
            )
        return rows

    def build_program(self, problem: Problem, text: str) -> str:
        """Return the program of a completion."""
        if not self.is_chat:
            return problem.beginning + text
        code = extract_code(text, problem.entry_point)
        if not problem.beginning:
            return code
        return complete_function(code, problem.beginning, problem.header, problem.entry_point)

    def summarize(self, rows: Rows) -> list[Score]:
        """Return pass@k for the k that the samples allow, with intervals over problems, pass@1 first.

        Chance is 0: what passes its tests was not written by chance.
        """
        scores = []
        for k in list_ks(self.samples):
            values = [row["scores"][f"pass@{k}"] for row in rows]
            score = score_shares(f"pass@{k}", values, is_primary=k == 1)
            low = score.low if any(values) else 0.0  # exactly: rounding would set it off from chance
            scores.append(replace(score, chance=0.0, low=low))
        return scores


def describe_completion(text: str, result: ProgramResult) -> dict[str, str]:
    """Return a completion as rows of the journal have it."""
    return {"text": text, "outcome": result.outcome, "detail": result.detail}


def describe_rows(rows: Rows) -> str:
    """Say what all programs came to, and how many prompts were cut: `164 programs: 3 passed, 160 failed, 1 timeout`."""
    outcomes = Counter(entry["outcome"] for row in rows for entry in row["completions"])
    counts = ", ".join(f"{count:,} {outcome}" for outcome, count in outcomes.most_common())
    line = f"{outcomes.total():,} programs: {counts}"
    cut = sum(row["cut_tokens"] > 0 for row in rows)
    if cut:
        line += f"; {cut:,} of {len(rows):,} prompts lost their beginning, since the context has no room for them"
    return line
