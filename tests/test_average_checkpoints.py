"""The mean of a training's last checkpoints as a model."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_llm.average_checkpoints import average_checkpoints, main, write_manifest_and_card
from hf_llm.core.errors import UserError
from hf_llm.core.manifest import read_manifest, write_json
from hf_llm.training.fault_tolerance.checkpoints import write_checkpoint_manifest
from tests.tiny_models import tiny_model, tiny_tokenizer


def save_checkpoint(folder, step, model):
    """A sealed checkpoint of `model`."""
    path = folder / f"checkpoint-{step}"
    model.save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    write_checkpoint_manifest(path)
    return path


def model_of_step(step, dtype=torch.float32, **changes):
    """The tiny model with weights that depend on `step`."""
    model = tiny_model(**changes)
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    return model.to(dtype)


@pytest.fixture
def base(tmp_path):
    """A training under way, with three complete checkpoints and an incomplete one."""
    folder = tmp_path / "base"
    for step in (10, 20, 30):
        save_checkpoint(folder, step, model_of_step(step))
    model_of_step(40).save_pretrained(folder / "checkpoint-40")
    write_json(folder / "begun.json", {"settings": {"pretrain.tokens_per_step": 1024}, "inputs": {"tokens": "x"}})
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_weight_is_the_mean_of_the_last_checkpoints(tmp_path, dtype):
    for step in (10, 20, 30):
        save_checkpoint(tmp_path / "base", step, model_of_step(step, dtype))
    assert average_checkpoints(tmp_path / "base", 2, tmp_path / "mean") == [20, 30]
    files = [load_file(tmp_path / "base" / f"checkpoint-{step}" / "model.safetensors") for step in (20, 30)]
    averaged = load_file(tmp_path / "mean" / "model.safetensors")
    assert averaged.keys() == files[0].keys()
    for name, tensor in averaged.items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, ((files[0][name].double() + files[1][name].double()) / 2).to(dtype))


def test_the_folder_is_a_model_with_tokenizer_manifest_and_card(base, tmp_path, capsys):
    output = tmp_path / "averaged"
    main([str(base), "--last", "3", "--output", str(output)])
    assert capsys.readouterr().out.endswith("the mean of the checkpoints at steps 10, 20, 30\n")
    model = AutoModelForCausalLM.from_pretrained(output)
    assert torch.equal(model.lm_head.weight, model.get_input_embeddings().weight)
    assert AutoTokenizer.from_pretrained(output).get_vocab() == tiny_tokenizer().get_vocab()
    manifest = read_manifest(output)
    assert manifest["folder"] == "base" and manifest["facts"]["averaged steps"] == [10, 20, 30]
    assert manifest["settings"] == {"pretrain.tokens_per_step": 1024}
    assert "30" in (output / "README.md").read_text() or manifest["headline"].endswith("to step 30")
    assert json.loads((output / "config.json").read_text()) == json.loads(
        (base / "checkpoint-30/config.json").read_text()
    )


def test_the_licences_of_a_stages_own_data_stay(tiny_life, tmp_path):
    shutil.copytree(tiny_life / "runs/tiny/sft", tmp_path / "mean")
    (tmp_path / "mean/manifest.json").unlink()
    write_manifest_and_card(tiny_life / "runs/tiny/sft", tmp_path / "mean", [1, 2])
    assert read_manifest(tmp_path / "mean")["licenses"] == read_manifest(tiny_life / "runs/tiny/sft")["licenses"]
    assert "mit" in read_manifest(tmp_path / "mean")["licenses"]


@pytest.mark.slow
def test_a_process_without_hf_llm_opens_it(base, tmp_path):
    average_checkpoints(base, 2, tmp_path / "averaged")
    code = (
        "import sys; sys.modules['hf_llm'] = None; from transformers import AutoModelForCausalLM as M; "
        "M.from_pretrained(sys.argv[1], trust_remote_code=True)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "averaged")], check=True, timeout=300)


def test_experts_and_their_biases_are_averaged_too(tmp_path):
    moe = {"num_experts": 4, "num_experts_per_tok": 2, "expert_balancing": "bias"}
    models = [model_of_step(step, **moe) for step in (1, 2)]
    for step, model in enumerate(models, 1):
        save_checkpoint(tmp_path / "base", step, model)
    average_checkpoints(tmp_path / "base", 2, tmp_path / "mean")
    averaged = AutoModelForCausalLM.from_pretrained(tmp_path / "mean").state_dict()
    one, two = (model.state_dict() for model in models)
    for name, tensor in averaged.items():
        torch.testing.assert_close(tensor, (one[name] + two[name]) / 2, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("last", "message"), [(1, "takes two checkpoints"), (4, r"3 complete checkpoints \(steps 10, 20, 30\), not 4")]
)
def test_too_few_checkpoints_are_refused(base, tmp_path, last, message):
    with pytest.raises(UserError, match=message):
        average_checkpoints(base, last, tmp_path / "averaged")


def test_a_damaged_checkpoint_is_refused(base, tmp_path):
    weights = base / "checkpoint-20" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match=r"checkpoint-20: model.safetensors differs"):
        average_checkpoints(base, 2, tmp_path / "averaged")
    assert not (tmp_path / "averaged").exists()


def test_another_shape_or_an_adapter_is_refused(base, tmp_path):
    save_checkpoint(base, 50, model_of_step(50, intermediate_size=64))
    with pytest.raises(UserError, match=r"checkpoint-50 is a model of another shape than .*checkpoint-30"):
        average_checkpoints(base, 2, tmp_path / "averaged")
    (base / "checkpoint-60").mkdir()
    (base / "checkpoint-60" / "adapter_config.json").write_text("{}")
    write_checkpoint_manifest(base / "checkpoint-60")
    with pytest.raises(UserError, match="holds an adapter"):
        average_checkpoints(base, 2, tmp_path / "averaged")


def test_a_folder_in_use_is_refused(base, tmp_path):
    with pytest.raises(UserError, match="is not empty"):
        average_checkpoints(base, 2, base)


def test_checkpoints_of_different_tokenizers_are_refused(tmp_path):
    for step in (10, 20):
        save_checkpoint(tmp_path / "base", step, model_of_step(step))
    path = tmp_path / "base/checkpoint-20"
    text = (path / "tokenizer.json").read_text(encoding="utf-8")
    swapped = text.replace('"a": ', '"\x00": ').replace('"b": ', '"a": ').replace('"\x00": ', '"b": ')
    assert swapped != text
    (path / "tokenizer.json").write_text(swapped, encoding="utf-8")
    write_checkpoint_manifest(path)
    with pytest.raises(UserError, match=r"checkpoint-10 has another tokenizer than .*checkpoint-20: '[ab]' is"):
        average_checkpoints(tmp_path / "base", 2, tmp_path / "mean")


def test_a_run_means_its_last_training_and_the_mean_goes_beside_it(tmp_path, capsys):
    for stage in ("base", "sft"):
        for step in (10, 20):
            save_checkpoint(tmp_path / stage, step, model_of_step(step))
    main([str(tmp_path), "--last=2"])
    said = capsys.readouterr()
    assert f"{tmp_path / 'sft-averaged'}: the mean of the checkpoints at steps 10, 20" in said.out
    assert f"its last training with checkpoints is {tmp_path / 'sft'}" in said.err
    assert (tmp_path / "sft-averaged/config.json").exists()
