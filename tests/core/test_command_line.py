from hf_llm.core.command_line import CommandParser


def parser():
    made = CommandParser(allow_abbrev=False)
    made.add_argument("--max-new-tokens", type=int)
    made.add_argument("--top-p", type=float)
    made.add_argument("--greedy", action="store_true")
    made.add_argument("rest", nargs="*")
    return made


def test_options_may_be_typed_with_underscores():
    for words in (["--max_new_tokens", "3"], ["--max-new-tokens", "3"], ["--max_new_tokens=3"], ["--max-new_tokens=3"]):
        assert parser().parse_args(words).max_new_tokens == 3
    assert parser().parse_args(["--top_p=0.5", "--greedy"]).top_p == 0.5


def test_recipe_overrides_and_commands_stay_as_they_are():
    words = ["--pretrain.tokens_per_step=1", "--max_new_tokens=3", "my_recipe.yaml"]
    options, others = parser().parse_known_args(words)
    assert others == ["--pretrain.tokens_per_step=1"] and options.max_new_tokens == 3
    assert options.rest == ["my_recipe.yaml"]
    assert parser().parse_args(["--", "--max_new_tokens"]).rest == ["--max_new_tokens"]
