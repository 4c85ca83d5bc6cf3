"""The models' answers, made while people judge: in the background, the pairs shown first first."""

import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hf_llm.core.errors import UserError
from hf_llm.core.manifest import digest_of
from hf_llm.human_eval.votes import Votes

if TYPE_CHECKING:
    import torch

BATCH = 8  # prompts answered at once; also what is lost where the process is killed


def make_answers(votes: Votes) -> Iterator[int]:
    """Make every missing answer, one model after the other, so that one is in memory; yields how many are left."""
    left = sum(len(prompts) for prompts in votes.missing().values())
    for name, prompts in votes.missing().items():
        model = Answerer(votes, name)
        for batch in batches(prompts):
            model.answer(batch, stopped=threading.Event())
            left -= len(batch)
            yield left


class Answerer:
    """A loaded model that answers prompts of a votes file. Raises UserError where it cannot be loaded."""

    def __init__(self, votes: Votes, name: str):
        from hf_llm.inference.generate import load, usual_length  # torch, which answers from a file do not need

        self.votes, self.name = votes, name
        made_with = votes.models()[name]
        self.prompts = votes.prompts()
        self.sampling: dict[str, Any] = dict(made_with["sampling"])
        self.model, self.tokenizer = load(made_with["path"])
        self.seed = self.sampling.pop("seed")
        self.length = self.sampling.pop("max_new_tokens") or usual_length(self.model)

    def answer(self, prompts: list[int], stopped: threading.Event) -> None:
        """Answer the prompts of these numbers together, and keep the answers, unless `stopped` is set meanwhile.

        Their seed comes from the comparison's, the model's name and the first prompt: the same answers whoever makes
        them, and when, and no dice that two models share, which would make like models say the same.
        """
        from transformers import StoppingCriteriaList

        from hf_llm.inference.generate import reply

        def told_to_stop(tokens: "torch.Tensor", scores: "torch.Tensor") -> "torch.Tensor":
            return tokens.new_full((tokens.shape[0],), int(stopped.is_set())).bool()

        texts = reply(
            self.model,
            self.tokenizer,
            [self.prompts[number] for number in prompts],
            self.length,
            seed=int(digest_of([self.seed, self.name, prompts[0]])[:8], 16),
            stopping_criteria=StoppingCriteriaList([told_to_stop]),
            **self.sampling,
        )
        if not stopped.is_set():
            self.votes.add_answers(self.name, dict(zip(prompts, texts, strict=True)))


class Background:
    """A thread that makes the missing answers, a batch of each model in turn, so that pairs become complete in the
    order of judging. `problem` says why it has ended early; None while all is well."""

    def __init__(self, votes: Votes):
        self.votes, self.problem = votes, None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="answers")

    def __enter__(self) -> "Background":
        if self.votes.missing():
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            todo = {name: batches(prompts) for name, prompts in self.votes.missing().items()}
            models = {name: Answerer(self.votes, name) for name in todo}
            while todo and not self._stopped.is_set():
                for name in list(todo):
                    models[name].answer(todo[name].pop(0), self._stopped)
                    if not todo[name]:
                        del todo[name]
        except UserError as error:
            self.problem = str(error)
        except Exception as error:  # the thread's only way to tell: the page and the terminal show it
            self.problem = f"making the answers failed: {type(error).__name__}: {error}"
            raise


def batches(prompts: list[int]) -> list[list[int]]:
    """The prompts in the groups in which they are answered."""
    return [prompts[start : start + BATCH] for start in range(0, len(prompts), BATCH)]
