"""Every way to launch, for real, on CPU processes over gloo: each learns what one process does, saves, and goes on."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config

from hf_llm.core.errors import UserError
from hf_llm.core.manifest import file_digest
from hf_llm.parallel.layout import Layout, check_layout, read_layout
from hf_llm.training.arguments import split_batch
from hf_llm.training.tensor_pipeline_trainer import check_model_divides
from tests.tiny_models import tiny_model
from tests.tiny_recipe import ROOT, launch, launch_command, losses, prepare

SHARDS = "--parallelism_config_dp_shard_size={}".format
REPLICAS = "--parallelism_config_dp_replicate_size={}".format
TWO_STAGES = {"PARALLELISM_CONFIG_PP_SIZE": "2"}
slow = pytest.mark.slow

# The config, and how many processes, options of the launcher and environment make it fit two cores.
ENGINES = [
    pytest.param("ddp", 2, (), {}, id="ddp"),
    pytest.param("zero2", 2, (), {}, id="zero2"),
    pytest.param("pipeline_parallel", 2, (SHARDS(1),), TWO_STAGES, id="pipeline", marks=slow),
    pytest.param("zero1", 2, (), {}, id="zero1", marks=slow),
    pytest.param("zero2_offload", 2, (), {}, id="zero2_offload", marks=slow),
    pytest.param("zero3", 2, (), {}, id="zero3", marks=slow),
    pytest.param("zero3_offload", 2, (), {}, id="zero3_offload", marks=slow),
    pytest.param("fsdp2", 2, (), {}, id="fsdp2", marks=slow),
    pytest.param("hsdp", 4, (SHARDS(2),), {}, id="hsdp", marks=slow),
    pytest.param("tensor_parallel", 2, (SHARDS(1),), {}, id="tensor", marks=slow),
    pytest.param("tensor_parallel", 4, (SHARDS(2),), {}, id="tensor-shards", marks=slow),
    pytest.param("pipeline_parallel", 4, (SHARDS(2),), TWO_STAGES, id="pipeline-shards", marks=slow),
    pytest.param("three_dimensions", 4, (SHARDS(1),), TWO_STAGES, id="tensor-pipeline", marks=slow),
    pytest.param("sequence_parallel", 2, (REPLICAS(1),), {}, id="sequence", marks=slow),
    pytest.param("three_dimensions", 8, (), TWO_STAGES, id="three_dimensions", marks=slow),
]
STEPS = ("max_steps=20", "logging_steps=1", "save_steps=10", "per_device_train_batch_size=2")
TWENTY = tuple(f"--pretrain.training.{step}" for step in STEPS)


def check_learnt_the_same(base: Path, alone: Path) -> None:
    """Same tokens per step, so the same losses, gradient norms and model, whoever makes the step."""
    assert len(losses(base)) == 20
    for key in ("loss", "grad_norm", "eval_loss"):
        assert losses(base, key) == pytest.approx(losses(alone, key), abs=1e-3)
    assert losses(base)[-1] < losses(base)[0] - 0.5
    found, expected = (
        AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval() for folder in (base, alone)
    )
    assert found.lm_head.weight is found.model.embed_tokens.weight
    ids = torch.arange(64)[None]
    torch.testing.assert_close(found(ids).logits, expected(ids).logits, atol=1e-2, rtol=0)
    assert {path.name for path in base.glob("*.py")} == {path.name for path in alone.glob("*.py")}
    assert found.config.auto_map == expected.config.auto_map


@pytest.mark.parametrize(("config", "processes", "options", "environment"), ENGINES)
def test_every_engine_learns_what_one_process_does(prepared, trained_alone, config, processes, options, environment):
    done = launch(
        config,
        "hf_llm.pretrain",
        "tiny.yaml",
        *TWENTY,
        folder=prepared,
        processes=processes,
        options=options,
        **environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    check_learnt_the_same(prepared / "runs/tiny/base", trained_alone)


@slow
@pytest.mark.parametrize(("config", "processes", "options", "environment"), ENGINES)
def test_in_bf16_every_engine_learns_nearly_the_same(prepared, trained_alone, config, processes, options, environment):
    command = ("hf_llm.pretrain", "tiny.yaml", *TWENTY, "--pretrain.training.bf16=true")
    done = launch(config, *command, folder=prepared, processes=processes, options=options, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    base = prepared / "runs/tiny/base"
    assert losses(base) == pytest.approx(losses(trained_alone), rel=1e-2)
    assert losses(base) != losses(trained_alone)
    saved = torch.bfloat16 if config.startswith(("zero", "sequence")) else torch.float32  # DeepSpeed's own copy
    assert AutoModelForCausalLM.from_pretrained(base, trust_remote_code=True).dtype == saved


@slow
def test_a_pipeline_goes_on_past_the_end_of_an_epoch(prepared):
    steps = ("max_steps=8", "logging_steps=1", "save_steps=8", "per_device_train_batch_size=2")
    options = (*(f"--pretrain.training.{step}" for step in steps), "--pretrain.tokens_per_step=8192")
    command = ("hf_llm.pretrain", "tiny.yaml", *options)
    done = launch("pipeline_parallel", *command, folder=prepared, processes=2, options=(SHARDS(1),), **TWO_STAGES)
    assert done.returncode == 0, done.stdout + done.stderr
    base = prepared / "runs/tiny/base"
    assert len(losses(base)) == 8
    epochs = losses(base, "epoch")
    assert epochs[-1] > 1 and epochs[0] * 7 > 1  # of seven steps the last would have been cut off


COUNTED = """
from torchao.float8.float8_linear import Float8Linear
from hf_llm import pretrain
forward, calls = Float8Linear.forward, []
Float8Linear.forward = lambda *values: calls.append(1) or forward(*values)
pretrain.main()
print(len(calls), "products in 8 bits")
"""


@slow
def test_matrix_products_in_8_bits_learn_nearly_the_same(prepared, trained_alone):
    pytest.importorskip("torchao")
    (prepared / "counted.py").write_text(COUNTED)
    done = launch("fp8", "counted", "tiny.yaml", *TWENTY, folder=prepared, processes=1, options=("--cpu",))
    assert done.returncode == 0, done.stdout + done.stderr
    layers = 14 - 1  # all linear layers but the first
    assert int(re.search(r"(\d+) products in 8 bits", done.stdout)[1]) >= 20 * 4 * layers
    base = prepared / "runs/tiny/base"
    assert losses(base) == pytest.approx(losses(trained_alone), rel=1e-2)
    assert losses(base) != losses(trained_alone)
    assert AutoModelForCausalLM.from_pretrained(base, trust_remote_code=True).dtype == torch.float32


@slow
@pytest.mark.parametrize(
    ("config", "options", "environment"),
    [
        ("fsdp2", (), {}),
        ("tensor_parallel", (SHARDS(1),), {}),
        ("pipeline_parallel", (SHARDS(1),), TWO_STAGES),
    ],
    ids=["fsdp2", "tensor", "pipeline"],
)
def test_what_is_split_goes_on_from_a_checkpoint_exactly(prepared, config, options, environment):
    base = prepared / "runs/tiny/base"
    command = (config, "hf_llm.pretrain", "tiny.yaml", *TWENTY)
    done = launch(*command, folder=prepared, options=options, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    whole, curve = file_digest(base / "model.safetensors"), losses(base)
    for name in ("manifest.json", "model.safetensors"):
        (base / name).unlink()
    shutil.rmtree(base / "checkpoint-20")

    done = launch(*command, folder=prepared, options=options, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "resuming at step 10" in done.stdout
    assert file_digest(base / "model.safetensors") == whole
    assert losses(base) == curve


@slow
def test_a_checkpoint_of_two_stages_is_gone_on_from_by_two_halves_of_each_layer(prepared, trained_alone):
    base = prepared / "runs/tiny/base"
    first = ("pipeline_parallel", "hf_llm.pretrain", "tiny.yaml", *TWENTY)
    done = launch(*first, folder=prepared, options=(SHARDS(1),), **TWO_STAGES)
    assert done.returncode == 0, done.stdout + done.stderr
    (base / "manifest.json").unlink()
    shutil.rmtree(base / "checkpoint-20")
    second = ("tensor_parallel", "hf_llm.pretrain", "tiny.yaml", *TWENTY)
    done = launch(*second, folder=prepared, options=(SHARDS(1),))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "resuming at step 10" in done.stdout
    check_learnt_the_same(base, trained_alone)


# ---- several machines

ON_CPUS = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}


@pytest.fixture
def two_hosts():
    """Two network namespaces joined by a virtual cable: the name, interface and address of each."""
    names = [f"hf{os.getpid()}{side}" for side in "ab"]
    hosts = [(name, f"10.77.0.{number}") for number, name in enumerate(names, 1)]
    commands = [
        *(["ip", "netns", "add", name] for name in names),
        ["ip", "link", "add", names[0], "netns", names[0], "type", "veth", "peer", "name", names[1], "netns", names[1]],
        *(["ip", "-n", name, "addr", "add", f"{address}/24", "dev", name] for name, address in hosts),
        *(["ip", "-n", name, "link", "set", device, "up"] for name in names for device in (name, "lo")),
    ]
    try:
        for command in commands:
            try:
                subprocess.run(command, check=True, capture_output=True, text=True)
            except (OSError, subprocess.CalledProcessError) as error:
                pytest.skip(f"network namespaces cannot be made here: {getattr(error, 'stderr', '') or error}")
        yield hosts
    finally:
        for name in names:
            if Path("/run/netns", name).exists():
                subprocess.run(["ip", "netns", "delete", name], check=True)


@slow
def test_two_machines_learn_what_one_process_does(prepared, trained_alone, two_hosts):
    processes = []
    for rank, (name, _) in enumerate(two_hosts):
        options = (f"--machine_rank={rank}", f"--main_process_ip={two_hosts[0][1]}", "--main_process_port=29500")
        command = launch_command("multi_node", "hf_llm.pretrain", "tiny.yaml", *TWENTY, options=options)
        environment = {**ON_CPUS, "GLOO_SOCKET_IFNAME": name}
        processes.append(
            subprocess.Popen(
                ["ip", "netns", "exec", name, *command],
                cwd=prepared,
                env={**os.environ, **environment},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    outputs = [process.communicate(timeout=900)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    check_learnt_the_same(prepared / "runs/tiny/base", trained_alone)


# What Slurm's two commands do as far as the job file needs them: name the nodes, and start one task on each.
SCONTROL = '#!/bin/sh\n[ "$1 $2" = "show hostnames" ] && printf "localhost\\nlocalhost\\n"\n'
SRUN = """#!/bin/sh
while [ "${1#--}" != "$1" ]; do shift; done
SLURM_NODEID=0 SLURM_PROCID=0 "$@" & first=$!
SLURM_NODEID=1 SLURM_PROCID=1 "$@" & second=$!
wait $first && wait $second
"""


@slow
def test_the_slurm_file_starts_one_launcher_on_each_node(prepared, trained_alone, tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "accelerate").write_text(f'#!/bin/sh\nexec {sys.executable} -m accelerate.commands.accelerate_cli "$@"\n')
    for name, text in (("scontrol", SCONTROL), ("srun", SRUN)):
        (tools / name).write_text(text)
    for tool in tools.iterdir():
        tool.chmod(0o755)
    nodes = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "1"}
    done = subprocess.run(
        ["bash", ROOT / "accelerate_configs/slurm.sbatch", "hf_llm.pretrain", "tiny.yaml", *TWENTY],
        cwd=prepared,
        env={**os.environ, **ON_CPUS, **nodes, "SLURM_JOB_ID": "7", "PATH": f"{tools}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    check_learnt_the_same(prepared / "runs/tiny/base", trained_alone)


# ---- what only GPUs can do


@pytest.mark.gpu
@slow
@pytest.mark.parametrize(
    ("config", "options"),
    [
        ("context_parallel", (SHARDS(1),)),
        ("fsdp2", ()),
        ("tensor_parallel", (SHARDS(1),)),
    ],
)
def test_on_two_gpus_an_engine_learns_what_one_process_does(tiny_life, tmp_path, trained_alone, config, options):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    folder = prepare(tiny_life, tmp_path)
    float32 = ("--pretrain.training.bf16=false", "--pretrain.training.tf32=false")
    done = launch(config, "hf_llm.pretrain", "tiny.yaml", *TWENTY, *float32, folder=folder, options=options)
    assert done.returncode == 0, done.stdout + done.stderr
    check_learnt_the_same(folder / "runs/tiny/base", trained_alone)


# ---- what a launch says, and what is refused


@pytest.mark.parametrize(
    ("layout", "model_type", "words"),
    [
        (Layout(3, pipeline=3), "hf_llm", "3 pipeline stages for 2 layers"),
        (Layout(3, tensor=3), "hf_llm", "model.num_attention_heads: 4 does not divide by 3"),
        (Layout(2, tensor=2), "gpt2", "gpt2 has no plan for tensor parallelism"),
        (Layout(2, pipeline=2), "gpt2", "gpt2 has no plan for pipeline parallelism"),
    ],
)
def test_a_model_that_cannot_be_divided_is_refused(layout, model_type, words):
    gpt2 = GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=320)
    model = tiny_model() if model_type == "hf_llm" else AutoModelForCausalLM.from_config(gpt2)
    with pytest.raises(UserError, match=words):
        check_model_divides(model, layout)


def launched(monkeypatch, processes: int, pipeline: int = 1, **sizes: int) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    monkeypatch.setenv("PARALLELISM_CONFIG_PP_SIZE", str(pipeline))
    monkeypatch.setenv("ACCELERATE_USE_PARALLELISM_CONFIG", "true")
    for name, size in sizes.items():
        monkeypatch.setenv(f"PARALLELISM_CONFIG_{name.upper()}_SIZE", str(size))


def test_a_step_has_the_same_tokens_however_many_processes_share_a_batch(monkeypatch):
    launched(monkeypatch, 16, pipeline=2, dp_shard=4, tp=2)
    assert read_layout() == Layout(16, shard=4, tensor=2, pipeline=2)
    assert read_layout().data == 4
    split = split_batch(16384, 128, {"per_device_train_batch_size": 4}, "pretrain")
    assert split["per_device_train_batch_size"] * split["gradient_accumulation_steps"] * 4 * 128 == 16384


def test_a_pipeline_is_given_a_micro_batch_for_every_stage(monkeypatch):
    launched(monkeypatch, 4, pipeline=4)
    assert split_batch(1024, 128, {}, "pretrain")["gradient_accumulation_steps"] == 4
    with pytest.raises(UserError, match="2 micro-batches of 4 windows for a pipeline of 4 stages"):
        split_batch(1024, 128, {"per_device_train_batch_size": 4}, "pretrain")


def test_sizes_that_do_not_make_the_number_of_processes_are_refused(monkeypatch):
    launched(monkeypatch, 8, tp=2)
    with pytest.raises(UserError, match="8 processes were launched, and the sizes in parallelism_config make 2"):
        read_layout()
    launched(monkeypatch, 8, pipeline=2, tp=2)
    with pytest.raises(UserError, match="make 2 x 2 pipeline stages; set --num_processes=4"):
        read_layout()


FSDP = {"ACCELERATE_USE_FSDP": "true"}


@pytest.mark.parametrize(
    ("layout", "where", "environment", "words"),
    [
        (Layout(2, context=2), "pretrain", {}, "there is none for a CPU"),
        (Layout(2, tensor=2), "sft", {}, "are for pretraining; launch sft with zero2"),
        (Layout(2, pipeline=2), "pretrain", {**FSDP, "FSDP_VERSION": "2"}, "distributed_type: MULTI_GPU"),
        (Layout(2), "sft", FSDP, "fsdp_version: 1 hides .* set it to 2"),
        (Layout(2, tensor=2), "pretrain", {"ACCELERATE_USE_DEEPSPEED": "true"}, "distributed_type: MULTI_GPU"),
        (Layout(2, shard=2), "pretrain", {}, "alone shards nothing; launch with fsdp2.yaml"),
        (Layout(4, replicate=2, tensor=2), "pretrain", {}, "set parallelism_config_dp_shard_size=2 instead"),
        (Layout(4, sequence=2, pipeline=2), "pretrain", {}, "is not implemented"),
    ],
)
def test_what_cannot_be_trained_so_is_refused(monkeypatch, layout, where, environment, words):
    for name, usual in (*((name, "false") for name in (*FSDP, "ACCELERATE_USE_DEEPSPEED")), ("FSDP_VERSION", "1")):
        monkeypatch.setenv(name, environment.get(name, usual))
    with pytest.raises(UserError, match=words):
        check_layout(layout, where, "cpu")
