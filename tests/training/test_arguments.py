import pytest

from hf_llm.core.errors import UserError
from hf_llm.core.recipe import Settings
from hf_llm.training.arguments import check_training_length


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"max_steps": 0}, "max_steps"),
        ({"max_steps": -5}, "max_steps"),
        ({"max_steps": 0, "num_train_epochs": 3}, "max_steps"),
        ({"num_train_epochs": 0}, "num_train_epochs"),
        ({"num_train_epochs": -1.0}, "num_train_epochs"),
        ({"num_train_epochs": float("nan")}, "num_train_epochs"),
        ({"num_train_epochs": float("inf"), "max_steps": -1}, "num_train_epochs"),
    ],
)
def test_a_length_that_trains_nothing_is_refused(settings, key):
    with pytest.raises(UserError, match=rf"sft\.training\.{key}: .* trains nothing; write"):
        check_training_length(Settings(settings), "sft")


@pytest.mark.parametrize(
    "settings",
    [{}, {"max_steps": 1}, {"max_steps": -1}, {"num_train_epochs": 0.1}, {"max_steps": 3, "num_train_epochs": 0}],
)
def test_other_lengths_are_taken(settings):
    check_training_length(Settings(settings), "sft")
