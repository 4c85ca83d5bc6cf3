import argparse

import pytest

from hf_llm.core.errors import UserError
from hf_llm.inference.generate import complete_prompts
from hf_llm.inference.sampling_arguments import add_sampling_arguments, read_sampling_arguments
from tests.tiny_models import tiny_model, tiny_tokenizer


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
    [
        *(("--temperature", value) for value in ("-1", "nan", "inf", "1e-40", "1e-9")),
        *(("--seed", value) for value in ("-1", str(2**63), str(10**30))),
        *(("--top-p", value) for value in ("nan", "-0.1")),
        ("--top-p", "0"),
        ("--top-p", "1.5"),
        ("--top-k", "-1"),
        ("--max-new-tokens", "0"),
    ],
)
def test_a_wrong_value_is_an_error_that_names_the_option(wrong):
    with pytest.raises(UserError, match=wrong[0]):
        read_sampling_arguments(parse_arguments(*wrong))


@pytest.mark.parametrize("temperature", ["0.001", "1e30"])
def test_an_extreme_temperature_that_is_taken_generates(temperature):
    sampling = read_sampling_arguments(parse_arguments("--temperature", temperature))
    assert len(complete_prompts(tiny_model(), tiny_tokenizer(), ["a"], 4, seed=2**63 - 1, **sampling)) == 1
