import argparse

import pytest

from hf_llm.core.errors import UserError
from hf_llm.inference.sampling_arguments import add_sampling_arguments, read_sampling_arguments


def parse_arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_sampling_arguments(parser)
    return parser.parse_args(words)


def test_options_become_keys_of_the_generation_config():
    assert read_sampling_arguments(parse_arguments("--temperature", "0.5", "--top-k", "9", "--top-p", "1")) == {
        **{"do_sample": True, "temperature": 0.5},
        **{"top_k": 9, "top_p": 1.0},
    }
    assert (
        read_sampling_arguments(parse_arguments("--greedy"))
        == read_sampling_arguments(parse_arguments("--temperature", "0"))
        == {"do_sample": False}
    )


@pytest.mark.parametrize(
    "wrong",
    [("--temperature", "-1"), ("--top-p", "0"), ("--top-p", "1.5"), ("--top-k", "-1"), ("--max-new-tokens", "0")],
)
def test_a_wrong_value_is_an_error_that_names_the_option(wrong):
    with pytest.raises(UserError, match=wrong[0]):
        read_sampling_arguments(parse_arguments(*wrong))
