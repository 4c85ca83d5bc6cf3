"""Talk to a chat model in the terminal.

    python -m hf_llm.chat runs/quickstart/dpo
    python -m hf_llm.chat runs/quickstart/dpo --greedy --max-new-tokens 256

/reset starts a new conversation, /exit (or Ctrl-D) ends; Ctrl-C cuts an answer short.
"""

import sys
import time
from typing import TYPE_CHECKING

from hf_llm.core.command_line import CommandParser
from hf_llm.core.errors import command
from hf_llm.core.interrupts import accept_interrupts
from hf_llm.inference.sampling_arguments import add_sampling_arguments, read_sampling_arguments
from hf_llm.pipeline.find_model import find_model

if TYPE_CHECKING:
    from hf_llm.inference.chat_session import ChatSession


@command
def main(argv: list[str] | None = None) -> None:
    parser = CommandParser(description=__doc__)
    parser.add_argument("model", help="a model folder or Hub id; of a run or a recipe, its last model")
    add_sampling_arguments(parser)
    arguments = parser.parse_args(argv)
    accept_interrupts(with_sigterm=False)  # Ctrl-C ends a reply, SIGTERM the program

    sampling = read_sampling_arguments(arguments)

    from hf_llm.inference.chat_session import ChatSession
    from hf_llm.inference.generate import default_max_new_tokens, load_for_generation

    model, tokenizer = load_for_generation(find_model(arguments.model))
    max_new_tokens = arguments.max_new_tokens or default_max_new_tokens(model)
    session = ChatSession(model, tokenizer, max_new_tokens, **sampling)

    print("/reset starts a new conversation, /exit ends.")
    seconds = chat_until_exit(session, arguments.seed)
    tokens = session.generated_tokens
    if tokens:
        print(f"{tokens} tokens in {seconds:.1f} s: {tokens / seconds:.1f} tokens/s", file=sys.stderr)


def chat_until_exit(session: "ChatSession", seed: int | None) -> float:
    """Answer what the user types until they leave. Return the seconds that generating took."""
    seconds = 0.0
    while True:
        question = read_question()
        if question is None:
            return seconds
        if question == "/reset":
            session.reset()
            print("(a new conversation)")
        elif question:
            start = time.perf_counter()
            print_reply(session, question, seed)
            seconds += time.perf_counter() - start


def read_question() -> str | None:
    """Return what the user types; None when they leave."""
    try:
        question = input("you> ").strip()
    except (EOFError, KeyboardInterrupt):
        print()
        return None
    return None if question == "/exit" else question


def print_reply(session: "ChatSession", question: str, seed: int | None) -> None:
    """Print the reply while it is generated."""
    pieces = session.stream_reply(question, seed)
    if session.note:
        print(f"({session.note})", file=sys.stderr)
    try:
        for piece in pieces:
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        pieces.close()
    print()


if __name__ == "__main__":
    main()
