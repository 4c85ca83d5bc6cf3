import io

import pytest

from hf_llm.core.manifest import write_manifest
from hf_llm.generate import main
from hf_llm.inference.generate import complete_prompts, generate_tokens, set_stop_tokens
from tests.tiny_models import save_tiny_model, tiny_model, tiny_tokenizer


@pytest.fixture
def folder(tmp_path):
    return str(save_tiny_model(tmp_path / "model"))


def test_every_prompt_is_printed_with_what_follows(folder, capsys):
    main([folder, "--prompt", "The", "--prompt", "Once", "--max-new-tokens", "8", "--greedy"])
    output = capsys.readouterr()
    texts = complete_prompts(tiny_model(), tiny_tokenizer(), ["The", "Once"], 8, do_sample=False)
    assert output.out == f"The{texts[0]}\n\nOnce{texts[1]}\n\n"
    assert "tokens/s" in output.err


def test_the_speed_counts_the_tokens_that_were_generated_with_their_end_and_without_padding(tmp_path, capsys):
    tokenizer = tiny_tokenizer()
    model = tiny_model()
    prompts = ["The", "Once upon a time", "A"]
    free = generate_tokens(model, tokenizer, [tokenizer(prompt)["input_ids"] for prompt in prompts], 20)
    end = free[0][5]
    model.generation_config.eos_token_id = end
    set_stop_tokens(model, tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)

    main([str(tmp_path), *[f"--prompt={prompt}" for prompt in prompts], "--max-new-tokens=20", "--greedy"])
    counts = [row.index(end) + 1 if end in row else len(row) for row in free]
    assert len(set(counts)) > 1
    assert capsys.readouterr().err.startswith(f"{sum(counts)} tokens in ")


def test_without_a_prompt_standard_input_is_the_prompt(folder, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("one\ntwo\n"))
    main([folder, "--max-new-tokens", "4", "--greedy"])
    assert capsys.readouterr().out.startswith("one\ntwo")


def test_the_same_seed_samples_the_same_text(folder, capsys):
    texts = []
    for _ in range(2):
        main([folder, "--prompt", "The", "--max-new-tokens", "8", "--seed", "3"])
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]


def test_a_missing_folder_ends_with_code_2(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["runs/none/base", "--prompt", "x"])
    assert stop.value.code == 2
    assert "there is no folder runs/none/base" in capsys.readouterr().err


def test_options_may_have_underscores_and_a_run_means_its_last_model(folder, tmp_path, capsys):
    main([folder, "--prompt", "The", "--max_new_tokens", "8", "--greedy"])
    expected = capsys.readouterr().out
    run = tmp_path / "run"
    save_tiny_model(run / "sft")
    (run / "base").mkdir()
    write_manifest(run / "sft", folder="sft")
    main([str(run), "--prompt", "The", "--max-new-tokens", "8", "--greedy"])
    said = capsys.readouterr()
    assert said.out == expected and f"its last model is {run / 'sft'}" in said.err
