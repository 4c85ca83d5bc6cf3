"""Generate the models' answers to the prompts of a comparison, all beforehand or in the background of the voting."""

import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hf_llm.core.errors import UserError
from hf_llm.core.manifest import digest_of
from hf_llm.human_eval.votes import VoteDatabase

if TYPE_CHECKING:
    import torch

PROMPTS_PER_BATCH = 8  # answered together; a killed process loses at most this many answers


def generate_missing_answers(database: VoteDatabase) -> Iterator[int]:
    """Generate every missing answer, one model at a time so that only one is in memory.

    Yields after each batch how many answers are still missing.
    """
    missing = database.find_missing_answers()
    remaining = sum(len(prompts) for prompts in missing.values())
    for model_name, prompts in missing.items():
        generator = AnswerGenerator(database, model_name)
        for batch in split_into_batches(prompts):
            generator.generate_answers(batch, stop_requested=threading.Event())
            remaining -= len(batch)
            yield remaining


class AnswerGenerator:
    """A loaded model that answers prompts of a comparison. Raises UserError where it cannot be loaded."""

    def __init__(self, database: VoteDatabase, model_name: str):
        from hf_llm.inference.generate import (  # imports torch, which answers from a file do not need
            default_max_new_tokens,
            load_for_generation,
        )

        self.database = database
        self.model_name = model_name
        self.prompts = database.read_prompts()

        made_with = database.read_models()[model_name]
        self.model, self.tokenizer = load_for_generation(made_with["path"])
        self.sampling: dict[str, Any] = dict(made_with["sampling"])
        self.seed = self.sampling.pop("seed")
        self.max_new_tokens = self.sampling.pop("max_new_tokens") or default_max_new_tokens(self.model)

    def generate_answers(self, prompt_ids: list[int], stop_requested: threading.Event) -> None:
        """Answer these prompts as one batch and store the answers, unless `stop_requested` is set meanwhile.

        The seed is derived from the comparison's seed, the model's name and the first prompt. So the answers do not
        depend on which process generates them or when, and no two models share random numbers, which would make similar
        models give the same answers.
        """
        from transformers import StoppingCriteriaList

        from hf_llm.inference.generate import generate_replies

        def stop_all(tokens: "torch.Tensor", scores: "torch.Tensor") -> "torch.Tensor":
            batch_size = tokens.shape[0]
            return tokens.new_full((batch_size,), int(stop_requested.is_set())).bool()  # (batch,)

        digest = digest_of([self.seed, self.model_name, prompt_ids[0]])
        texts = generate_replies(
            self.model,
            self.tokenizer,
            [self.prompts[prompt_id] for prompt_id in prompt_ids],
            self.max_new_tokens,
            seed=int(digest[:8], 16),
            stopping_criteria=StoppingCriteriaList([stop_all]),
            **self.sampling,
        )
        # Answers that were cut short are not stored.
        if not stop_requested.is_set():
            self.database.add_answers(self.model_name, dict(zip(prompt_ids, texts, strict=True)))


class BackgroundGeneration:
    """A thread that generates the missing answers while people vote.

    It takes one batch of each model in turn, so that pairs are completed in the order in which they are shown.
    `problem` says why it has ended early; it is None while all is well.
    """

    def __init__(self, database: VoteDatabase):
        self.database = database
        self.problem: str | None = None
        self._stop_requested = threading.Event()
        self._thread = threading.Thread(target=self._run, name="answers")

    def __enter__(self) -> "BackgroundGeneration":
        if self.database.find_missing_answers():
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_requested.set()
        was_started = self._thread.ident is not None
        if was_started:
            self._thread.join()

    def _run(self) -> None:
        try:
            self._generate_in_turn()
        except UserError as error:
            self.problem = str(error)
        except Exception as error:
            # The page and the terminal show this; a thread has no other way to report it.
            self.problem = f"generating the answers failed: {type(error).__name__}: {error}"
            raise

    def _generate_in_turn(self) -> None:
        missing = self.database.find_missing_answers()
        pending = {model_name: split_into_batches(prompts) for model_name, prompts in missing.items()}
        generators = {model_name: AnswerGenerator(self.database, model_name) for model_name in pending}

        while pending and not self._stop_requested.is_set():
            for model_name in list(pending):
                batch = pending[model_name].pop(0)
                generators[model_name].generate_answers(batch, self._stop_requested)
                if not pending[model_name]:
                    del pending[model_name]


def split_into_batches(prompt_ids: list[int]) -> list[list[int]]:
    """Split the prompts into the batches in which they are answered."""
    starts = range(0, len(prompt_ids), PROMPTS_PER_BATCH)
    return [prompt_ids[start : start + PROMPTS_PER_BATCH] for start in starts]
