"""What comes from strangers is refused before any of it runs. (For archives: data/test_archives.py.)"""

import json
import os
from pathlib import Path

import pytest
import torch

from hf_llm.core.errors import UserError
from hf_llm.model.load import load_model, load_reward_model, load_tokenizer
from hf_llm.pipeline.run import Run
from tests.tiny_models import save_tiny_model


class Evil:
    """A pickle that makes `marker` when it is loaded."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.fixture
def marker(tmp_path):
    """A file that only a stranger's code makes."""
    yield tmp_path / "marker"
    assert not (tmp_path / "marker").exists()


def evil_code(folder, marker):
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w')")


@pytest.mark.parametrize("load", [load_model, load_reward_model])
def test_weights_that_are_a_program_are_not_unpickled(tmp_path, marker, load):
    folder = save_tiny_model(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Evil(marker)}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="its weights are a pickle that would run a program") as refused:
        load(folder)
    assert "weights_only" not in str(refused.value)  # torch's own message tells how to run it


@pytest.mark.parametrize("load", [load_model, load_reward_model])
def test_a_model_with_code_of_its_own_is_not_loaded(tmp_path, marker, load):
    folder = save_tiny_model(tmp_path / "model")
    evil_code(folder, marker)
    config = json.loads((folder / "config.json").read_text())
    classes = {"AutoConfig": "evil.A", "AutoModelForCausalLM": "evil.B", "AutoModelForSequenceClassification": "evil.C"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "evil", "auto_map": classes}))
    with pytest.raises(UserError, match="no model to load"):
        load(folder)


def test_code_beside_a_model_of_a_known_kind_is_left_alone(tmp_path, marker):
    folder = save_tiny_model(tmp_path / "model")
    evil_code(folder, marker)
    config = json.loads((folder / "config.json").read_text())
    classes = {"AutoConfig": "evil.A", "AutoModelForCausalLM": "evil.B"}
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": classes}))
    assert type(load_model(folder)).__module__.startswith("hf_llm.")


def test_a_tokenizer_with_code_of_its_own_is_not_loaded(tmp_path, marker):
    folder = save_tiny_model(tmp_path / "model")
    evil_code(folder, marker)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    evil = {**config, "tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.T", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(evil))
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match="no tokenizer to load"):
        load_tokenizer(folder)


def test_a_recipe_that_would_run_a_program_is_not_read(tmp_path, marker):
    recipe = tmp_path / "evil.yaml"
    recipe.write_text(f"name: x\npretrain: !!python/object/apply:os.system ['touch {marker}']\n")
    with pytest.raises(UserError, match="cannot parse"):
        Run([str(recipe)])


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/../../evil"])
def test_a_name_that_leads_out_of_runs_is_refused(tmp_path, name):
    (tmp_path / "r.yaml").write_text(f"name: {name}\n")
    with pytest.raises(UserError, match="cannot name a folder"):
        Run([str(tmp_path / "r.yaml")])
