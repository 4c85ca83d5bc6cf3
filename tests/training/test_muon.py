"""Muon against torch's own, on whole matrices and on parts of them; what it is for, and where it is refused."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from transformers import AutoModelForCausalLM, GPT2Config

from hf_llm.core.errors import UserError
from hf_llm.core.manifest import file_digest
from hf_llm.training import muon
from hf_llm.training.muon import Muon, check_muon, muon_matrices, orthogonalize_matrices, orthogonalize_partition
from tests.tiny_models import tiny_model
from tests.tiny_recipe import launch, losses, run_module
from tests.variants import CHANGES

RATES = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8}
SHAPES = [(6, 4), (4, 10), (2, 6, 4)]


def groups_of(parameters) -> list[dict]:
    parameters = list(parameters)
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]


def step(model: torch.nn.Module, *optimizers: torch.optim.Optimizer) -> float:
    ids = torch.randint(0, 256, (2, 16), generator=torch.Generator().manual_seed(3))
    loss = model(ids, labels=ids).loss
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


def test_its_steps_are_those_of_torchs_muon_and_adamw(monkeypatch):
    monkeypatch.setattr(muon, "has_bf16", lambda device: True)  # torch's Muon takes bfloat16 everywhere
    model, other = tiny_model().train(), tiny_model().train()
    ours = Muon(groups_of(model.parameters()), matrices=muon_matrices(model), **RATES)
    matrices = muon_matrices(other)
    theirs = torch.optim.Muon(list(matrices), lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(groups_of(p for p in other.parameters() if p not in matrices), **RATES)
    for number in range(4):
        step(model, ours)
        step(other, theirs, adamw)
        for (name, one), two in zip(model.named_parameters(), other.parameters(), strict=True):
            # A step moves a weight by about 1e-2. Processors with bfloat16 units round a batched product otherwise.
            tolerance = 3e-4 if number == 0 else 1e-3
            torch.testing.assert_close(one, two, atol=tolerance, rtol=0, msg=f"{name} at step {number}")


@pytest.mark.parametrize("name", CHANGES)
def test_matrices_inside_layers_are_muons_and_all_else_adamws(name):
    model = tiny_model(**CHANGES[name])
    mine = {key for key, parameter in model.named_parameters() if parameter in muon_matrices(model)}
    expected = {key for key, parameter in model.named_parameters() if ".layers." in key and parameter.ndim >= 2}
    assert mine == expected


def test_embeddings_positions_and_head_of_stock_models_are_not_muons():
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=64, tie_word_embeddings=False)
    model = AutoModelForCausalLM.from_config(config)
    matrices = muon_matrices(model)
    mine = {name for name, parameter in model.named_parameters() if parameter in matrices}
    parts = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert mine == {f"transformer.h.0.{part}.weight" for part in parts}


@pytest.mark.parametrize("units", [True, False])
def test_orthogonal_matrices_have_singular_values_around_one_and_the_size_of_adamws_updates(units, monkeypatch):
    monkeypatch.setattr(muon, "has_bf16", lambda device: units)
    for shape in ((32, 64), (64, 32), (3, 32, 48)):
        orthogonal = orthogonalize_matrices(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
        values = torch.linalg.svdvals(orthogonal / (0.2 * max(shape[-2:]) ** 0.5))
        assert values.min() > 0.5 and values.max() < 1.3
        assert orthogonal.square().mean().sqrt() == pytest.approx(0.2, rel=0.2)


def test_stacked_matrices_are_made_orthogonal_one_by_one():
    stack = torch.randn(3, 8, 12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        orthogonalize_matrices(stack), torch.stack([orthogonalize_matrices(matrix) for matrix in stack])
    )


def test_whole_matrices_of_one_shape_are_stepped_together_as_if_alone(monkeypatch):
    one, other = tiny_model(num_hidden_layers=3).train(), tiny_model(num_hidden_layers=3).train()
    together = Muon(groups_of(one.parameters()), matrices=muon_matrices(one), **RATES)
    alone = Muon(groups_of(other.parameters()), matrices=muon_matrices(other), **RATES)
    step(one, together)
    monkeypatch.setattr(muon, "MAX_BATCH_ELEMENTS", 0)
    step(other, alone)
    for (name, first), second in zip(one.named_parameters(), other.parameters(), strict=True):
        # A step moves a weight by about 1e-2; a batched product may round otherwise.
        torch.testing.assert_close(first, second, atol=3e-4, rtol=0, msg=name)


def test_batches_hold_each_parameter_with_a_gradient_once_and_one_shape(monkeypatch):
    shapes = [(4, 6), (4, 6), (6, 4), (4, 6), (2, 4, 6), (2, 4, 6), (4, 6)]
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
    for parameter in parameters[:-1]:
        parameter.grad = torch.zeros_like(parameter)
    batches = muon.batch_equal_shapes(parameters)
    assert [[tuple(parameter.shape) for parameter in batch] for batch in batches] == [
        [(4, 6)] * 3, [(6, 4)], [(2, 4, 6)], [(2, 4, 6)],
    ]  # fmt: skip
    monkeypatch.setattr(muon, "MAX_BATCH_ELEMENTS", 48)
    assert [len(batch) for batch in muon.batch_equal_shapes(parameters)] == [2, 1, 1, 1, 1]


def test_a_parameter_without_gradient_stays_as_it_is():
    model = tiny_model().train()
    optimizer = Muon(groups_of(model.parameters()), matrices=muon_matrices(model), **RATES)
    step(model, optimizer)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])


def in_parts(rank: int, file: str) -> None:
    """What a process of two asserts: sharded as FSDP does it, and cut up as ZeRO does it, the step is the whole's."""
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    draw = torch.Generator().manual_seed(0)
    weights = [torch.randn(shape, generator=draw) for shape in SHAPES]
    gradients = [torch.randn(shape, generator=draw) for shape in SHAPES]
    norms = torch.nn.Parameter(torch.ones(3))
    mesh = init_device_mesh("cpu", (2,))

    def stepped(tensors: list[torch.Tensor], their_gradients: list[torch.Tensor]) -> list[torch.Tensor]:
        parameters = [torch.nn.Parameter(tensor) for tensor in tensors]
        optimizer = Muon([{"params": [*parameters, norms], "weight_decay": 0.1}], matrices=set(parameters), **RATES)
        for _ in range(2):
            for parameter, gradient in zip(parameters, their_gradients, strict=True):
                parameter.grad = gradient.clone()
            optimizer.step()
        return [parameter.detach() for parameter in parameters]

    whole = stepped([weight.clone() for weight in weights], gradients)
    shards = stepped(*([distribute_tensor(tensor, mesh, [Shard(0)]) for tensor in ts] for ts in (weights, gradients)))
    for shard, expected in zip(shards, whole, strict=True):
        torch.testing.assert_close(shard.full_tensor(), expected)

    row = torch.cat([gradient.flatten() for gradient in gradients])
    size = math.ceil(len(row) / 4) * 2  # ZeRO pads
    row = torch.nn.functional.pad(row, (0, 2 * size - len(row)))
    partition = orthogonalize_partition(row[rank * size : (rank + 1) * size], SHAPES)
    expected = torch.cat([orthogonalize_matrices(gradient).flatten() for gradient in gradients])
    expected = torch.nn.functional.pad(expected, (0, 2 * size - len(expected)))
    torch.testing.assert_close(partition, expected[rank * size : (rank + 1) * size])
    dist.destroy_process_group()


def test_on_parts_of_matrices_the_step_is_that_of_the_whole(tmp_path):
    mp.start_processes(in_parts, args=(str(tmp_path / "meeting"),), nprocs=2, start_method="spawn")


def test_where_it_cannot_work_it_is_refused_by_name(monkeypatch, tmp_path):
    with pytest.raises(UserError, match=r"sft\.training\.optim: muon is for pretraining"):
        check_muon("sft")
    check_muon("pretrain")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    configs = Path(__file__).parents[2] / "ds_configs"
    for name, said in (("zero3", "ZeRO-3"), ("zero2_offload", "offloading")):
        monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(configs / f"{name}.json"))
        with pytest.raises(UserError, match=f"{said} does not let it; launch with zero2 or fsdp2"):
            check_muon("pretrain")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(configs / "zero2.json"))
    check_muon("pretrain")
    config = json.loads((configs / "zero2.json").read_text(encoding="utf-8"))
    config["zero_optimization"]["round_robin_gradients"] = True
    (tmp_path / "zero.json").write_text(json.dumps(config), encoding="utf-8")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(tmp_path / "zero.json"))
    with pytest.raises(UserError, match="take round_robin_gradients out of the DeepSpeed JSON"):
        check_muon("pretrain")


STEPS = tuple(
    f"--pretrain.{key}"
    for key in (
        *("training.optim=muon", "training.max_steps=8", "training.logging_steps=1", "training.save_steps=4"),
        *("training.per_device_train_batch_size=2", "training.label_smoothing_factor=0.1", "z_loss=1e-2"),
    )
)


def check_resume(prepared, run) -> None:
    """Run to the end, then again from the middle: the same losses and the same bits."""
    base = prepared / "runs/tiny/base"
    whole, curve = file_digest(base / "model.safetensors"), losses(base)
    assert len(curve) == 8 and curve[-1] < curve[0] - 0.3
    for name in ("manifest.json", "model.safetensors"):
        (base / name).unlink()
    shutil.rmtree(base / "checkpoint-8")
    done = run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "resuming at step 4" in done.stdout
    assert losses(base) == curve
    assert file_digest(base / "model.safetensors") == whole


@pytest.mark.slow
def test_a_training_goes_on_from_a_checkpoint_exactly(prepared):
    def run():
        return run_module("hf_llm.pretrain", "tiny.yaml", *STEPS, folder=prepared)

    done = run()
    assert done.returncode == 0, done.stdout + done.stderr
    check_resume(prepared, run)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "options", "environment"),
    [
        ("ddp", (), {}),
        ("zero2", (), {}),
        ("fsdp2", (), {}),
        ("tensor_parallel", ("--parallelism_config_dp_shard_size=1",), {}),
        ("pipeline_parallel", ("--parallelism_config_dp_shard_size=1",), {"PARALLELISM_CONFIG_PP_SIZE": "2"}),
    ],
    ids=["ddp", "zero2", "fsdp2", "tensor", "pipeline"],
)
def test_two_processes_learn_what_one_does_and_go_on_exactly(prepared, config, options, environment):
    shutil.copytree(prepared / "runs/tiny", prepared / "runs/alone")
    alone = run_module("hf_llm.pretrain", "tiny.yaml", *STEPS, "--name=alone", folder=prepared)
    assert alone.returncode == 0, alone.stdout + alone.stderr

    def run():
        return launch(config, "hf_llm.pretrain", "tiny.yaml", *STEPS, folder=prepared, options=options, **environment)

    done = run()
    assert done.returncode == 0, done.stdout + done.stderr
    for key in ("loss", "objective", "grad_norm", "eval_loss"):
        by_two, by_one = (losses(prepared / "runs" / name / "base", key) for name in ("tiny", "alone"))
        assert by_two == pytest.approx(by_one, abs=1e-3), key
    check_resume(prepared, run)
