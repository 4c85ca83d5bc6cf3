"""Complete a text with a model.

    python -m hf_llm.generate runs/quickstart/base --prompt "The list of" --max-new-tokens 64
    echo "def add(a, b):" | python -m hf_llm.generate runs/quickstart/base --greedy

Several --prompt make several completions; without one the prompt is what comes in on standard input.
"""

import sys
import time

from hf_llm.core.command_line import CommandParser
from hf_llm.core.errors import command
from hf_llm.inference.sampling_arguments import add_sampling_arguments, read_sampling_arguments
from hf_llm.pipeline.find_model import find_model


@command
def main(argv: list[str] | None = None) -> None:
    parser = CommandParser(description=__doc__)
    parser.add_argument("model", help="a model folder or Hub id; of a run or a recipe, its last model")
    parser.add_argument("--prompt", action="append", help="the text to complete; may be given several times")
    add_sampling_arguments(parser)
    arguments = parser.parse_args(argv)

    sampling = read_sampling_arguments(arguments)

    from hf_llm.inference.generate import (
        default_max_new_tokens,
        describe_cut_prompts,
        encode_prompts,
        generate_tokens,
        load_for_generation,
    )

    model, tokenizer = load_for_generation(find_model(arguments.model))
    max_new_tokens = arguments.max_new_tokens or default_max_new_tokens(model)
    prompts = arguments.prompt or [sys.stdin.read().rstrip("\n")]
    for note in describe_cut_prompts(model, tokenizer, prompts, max_new_tokens):
        print(note, file=sys.stderr)

    start = time.perf_counter()
    encoded = encode_prompts(model, tokenizer, prompts, max_new_tokens)
    tokens = generate_tokens(model, tokenizer, encoded, max_new_tokens, arguments.seed, **sampling)
    completions = tokenizer.batch_decode(tokens, skip_special_tokens=True)
    seconds = time.perf_counter() - start

    for prompt, completion in zip(prompts, completions, strict=True):
        print(f"{prompt}{completion}\n")
    count = sum(map(len, tokens))
    print(f"{count} tokens in {seconds:.1f} s: {count / seconds:.1f} tokens/s", file=sys.stderr)


if __name__ == "__main__":
    main()
