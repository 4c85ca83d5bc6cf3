import pytest
from datasets import Dataset

from hf_llm.core.errors import UserError
from hf_llm.posttraining.rows.refused_rows import drop_refused_rows
from tests.tiny_models import CHATML, tiny_tokenizer

# As Gemma's template does.
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"


def row(*roles):
    prompt = [{"role": role, "content": "x"} for role in roles]
    return {"prompt": prompt, "chosen": [{"role": "assistant", "content": "y"}]}


@pytest.mark.parametrize("completions", [(), ("chosen",)])
def test_rows_that_the_template_refuses_are_dropped_and_counted(completions, capsys):
    tokenizer = tiny_tokenizer()
    rows = [Dataset.from_list([row("user"), row("system", "user"), row("user")]), Dataset.from_list([row("user")])]
    assert drop_refused_rows(rows, completions, tokenizer, 0.0) == (rows, {})

    tokenizer.chat_template = NO_SYSTEM + CHATML
    kept, counts = drop_refused_rows(rows, completions, tokenizer, 0.25)
    assert [len(part) for part in kept] == [2, 1] and counts == {"System role not supported": 1}
    assert "refuses 1 of 4 rows: 1 with 'System role not supported'; they were dropped" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"refuses 1 of 4 rows.*write `allow_drop: 0.25`"):
        drop_refused_rows(rows, completions, tokenizer, 0.2)
    with pytest.raises(UserError, match="refuses 1 of 2 rows"):
        drop_refused_rows([rows[0].select([1]), rows[1]], completions, tokenizer, 0.9)
