"""Complete a text with a model.

    python -m hf_llm.generate runs/quickstart/base --prompt "The list of" --max-new-tokens 64
    echo "def add(a, b):" | python -m hf_llm.generate runs/quickstart/base --greedy

Several --prompt make several completions; without one the prompt is what comes in on standard input.
"""

import argparse
import sys
import time

from hf_llm.core.errors import command
from hf_llm.core.help_format import HelpFormatter
from hf_llm.inference.generate import complete_prompts, default_max_new_tokens, load_for_generation
from hf_llm.inference.sampling_arguments import add_sampling_arguments, read_sampling_arguments


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("model", help="a model folder or Hub id")
    parser.add_argument("--prompt", action="append", help="the text to complete; may be given several times")
    add_sampling_arguments(parser)
    arguments = parser.parse_args(argv)

    sampling = read_sampling_arguments(arguments)
    model, tokenizer = load_for_generation(arguments.model)
    max_new_tokens = arguments.max_new_tokens or default_max_new_tokens(model)
    prompts = arguments.prompt or [sys.stdin.read().rstrip("\n")]

    start = time.perf_counter()
    completions = complete_prompts(model, tokenizer, prompts, max_new_tokens, seed=arguments.seed, **sampling)
    seconds = time.perf_counter() - start

    for prompt, completion in zip(prompts, completions, strict=True):
        print(f"{prompt}{completion}\n")
    tokens = sum(len(tokenizer(completion)["input_ids"]) for completion in completions)
    print(f"{tokens} tokens in {seconds:.1f} s: {tokens / seconds:.1f} tokens/s", file=sys.stderr)


if __name__ == "__main__":
    main()
