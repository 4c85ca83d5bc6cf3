"""Talk to a chat model in the terminal.

    python -m hf_llm.chat runs/quickstart/dpo
    python -m hf_llm.chat runs/quickstart/dpo --greedy --max-new-tokens 256

/reset starts a new conversation, /exit (or Ctrl-D) ends; Ctrl-C cuts an answer short.
"""

import argparse
import sys
import time

from hf_llm.core.errors import command
from hf_llm.inference.chat_session import Dialogue
from hf_llm.inference.generate import load, usual_length
from hf_llm.inference.sampling_arguments import add_sampling_arguments, sampling_of


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a model folder or Hub id")
    add_sampling_arguments(parser)
    arguments = parser.parse_args(argv)

    choice = sampling_of(arguments)
    model, tokenizer = load(arguments.model)
    length = arguments.max_new_tokens or usual_length(model)
    dialogue = Dialogue(model, tokenizer, length, **choice)
    print("/reset starts a new conversation, /exit ends.")
    seconds = 0.0
    while (question := ask()) is not None:
        if question == "/reset":
            dialogue.reset()
            print("(a new conversation)")
        elif question:
            start = time.perf_counter()
            show(dialogue, question, arguments.seed)
            seconds += time.perf_counter() - start
    if dialogue.tokens:
        print(f"{dialogue.tokens} tokens in {seconds:.1f} s: {dialogue.tokens / seconds:.1f} tokens/s", file=sys.stderr)


def ask() -> str | None:
    """What the user types; None when they leave."""
    try:
        question = input("you> ").strip()
    except (EOFError, KeyboardInterrupt):
        print()
        return None
    return None if question == "/exit" else question


def show(dialogue: Dialogue, question: str, seed: int | None) -> None:
    """Print the answer while it is made."""
    pieces = dialogue.answer(question, seed)
    try:
        for piece in pieces:
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        pieces.close()
    print()


if __name__ == "__main__":
    main()
