import json
import shutil
from functools import partial

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer

from hf_llm.core.errors import UserError
from hf_llm.training.fault_tolerance.checkpoints import write_checkpoint_manifest
from hf_llm.training.fault_tolerance.resume import check_engine, find_missing_weights
from tests.training.fault_tolerance.faults import (
    EVERY,
    STEPS,
    Sequences,
    kill_in_step,
    nan_loss,
    run,
    start,
    tiny_trainer,
)


def partial_damage(checkpoint, kind):
    """Damage one file of a finished checkpoint as disks, copies and people do."""
    file = checkpoint / {"flip": "model.safetensors", "cut": "optimizer.pt", "lost": "rng_state.pth"}.get(
        kind, "scheduler.pt"
    )
    content = file.read_bytes()
    if kind == "flip":
        file.write_bytes(content[:-9] + bytes([content[-9] ^ 4]) + content[-8:])
    elif kind == "cut":
        file.write_bytes(content[: len(content) // 2])
    elif kind == "lost":
        file.unlink()
    else:  # of another step
        shutil.copy(checkpoint.with_name(f"checkpoint-{EVERY}") / file.name, file)
    return file.name


def kill_in_step_7(trainer):
    kill_in_step(trainer, 7)


def kill_rank_1_in_step_7(trainer):
    kill_in_step(trainer, 7, rank=1)


def tied_trainer(folder, **changes):
    """A trainer of a model whose head is its embedding: a checkpoint holds their weight once."""
    trainer = tiny_trainer(folder, **changes)
    torch.manual_seed(0)
    config = LlamaConfig(**{**trainer.model.config.to_dict(), "tie_word_embeddings": True})
    return Trainer(
        LlamaForCausalLM(config), trainer.args, train_dataset=trainer.train_dataset, eval_dataset=trainer.eval_dataset
    )


@pytest.mark.parametrize("best", [False, True])
def test_no_weight_of_a_tied_model_is_called_missing(tmp_path, best):
    changes = {"build": tied_trainer}
    if best:
        changes |= {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 4, "save_strategy": "steps"}
    whole = run(tmp_path / "whole", **changes)
    assert run(tmp_path / "base", kill_in_step_7, **changes).code == -9
    again = run(tmp_path / "base", **changes)
    assert "resuming at step 4" in again.output
    assert again.outcome["weights"] == whole.outcome["weights"]
    assert "missing keys" not in whole.output + again.output


def test_a_weight_that_is_missing_under_all_its_names_is_called_missing():
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=8,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            tie_word_embeddings=True,
        )
    )
    both = ["lm_head.weight", "model.embed_tokens.weight"]
    assert find_missing_weights(model, both[:1]) == []
    assert find_missing_weights(model, both) == both
    assert find_missing_weights(model, ["lm_head.weight", "model.norm.weight"]) == ["model.norm.weight"]
    assert find_missing_weights(model, ["of.nothing"]) == ["of.nothing"]


def test_two_runs_with_one_seed_are_bit_equal(undisturbed, tmp_path):
    assert run(tmp_path / "base").outcome == undisturbed.ended.outcome


def test_kill_9_in_a_step_costs_the_steps_since_the_last_save_and_changes_nothing(undisturbed, tmp_path):
    assert run(tmp_path / "base", kill_in_step_7).code == -9
    again = run(tmp_path / "base")
    assert again.output.count(f"resuming at step {EVERY} from") == 1
    assert again.outcome["weights"] == undisturbed.ended.outcome["weights"]
    assert again.outcome["history"] == undisturbed.ended.outcome["history"]
    # 8 sequences a step: what was trained on before is not even read (nor the two of the check at the start)
    assert again.outcome["read"] == undisturbed.ended.outcome["read"] - 8 * EVERY - 2


def test_the_same_command_after_the_end_trains_no_further(undisturbed, tmp_path):
    folder = shutil.copytree(undisturbed.folder, tmp_path / "base")
    again = run(folder)
    assert (again.code, again.outcome["read"]) == (0, 0)
    assert again.outcome["weights"] == undisturbed.ended.outcome["weights"]
    assert again.outcome["history"] == undisturbed.ended.outcome["history"]
    assert not (folder / f"checkpoint-{STEPS + 1}").exists()


@pytest.mark.parametrize("kind", ["flip", "cut", "lost", "mixed"])
def test_a_damaged_checkpoint_is_quarantined_and_the_one_before_resumed_from(undisturbed, tmp_path, kind):
    folder = shutil.copytree(undisturbed.folder, tmp_path / "base")
    shutil.rmtree(folder / "checkpoint-12")
    name = partial_damage(folder / "checkpoint-8", kind)
    again = run(folder)
    assert f"checkpoint-8 is quarantined as checkpoint-8.corrupt: {name}" in again.output
    assert "resuming at step 4 from" in again.output
    assert again.outcome["weights"] == undisturbed.ended.outcome["weights"]
    assert again.outcome["history"] == undisturbed.ended.outcome["history"]


def test_with_every_checkpoint_bad_it_stops_with_the_reasons_and_never_starts_anew(undisturbed, tmp_path):
    folder = shutil.copytree(undisturbed.folder, tmp_path / "base")
    for step in (4, 8, 12):
        partial_damage(folder / f"checkpoint-{step}", "lost")
    again = run(folder)
    assert (again.code, again.outcome) == (2, None)
    assert again.output.count("rng_state.pth is missing") == 3
    assert "starting" not in again.output


def test_another_fingerprint_is_refused(undisturbed, tmp_path):
    folder = shutil.copytree(undisturbed.folder, tmp_path / "base")
    again = run(folder, fingerprint={"data": "b"})
    assert again.code == 2
    assert "data: was 'a', is 'b'" in again.output


def test_resume_from_checkpoint_rolls_back_and_quarantines_the_newer_ones(undisturbed, tmp_path):
    folder = shutil.copytree(undisturbed.folder, tmp_path / "base")
    again = run(folder, resume_from_checkpoint=str(folder / "checkpoint-4"), keep=9)
    assert "resuming at step 4" in again.output
    assert again.outcome["weights"] == undisturbed.ended.outcome["weights"]
    left = sorted(path.name for path in folder.glob("checkpoint-*"))
    assert left == ["checkpoint-12", "checkpoint-12.undone", "checkpoint-4", "checkpoint-8", "checkpoint-8.undone"]


def test_after_a_rollback_the_same_command_resumes_and_does_not_roll_back_again(undisturbed, tmp_path):
    folder = shutil.copytree(undisturbed.folder, tmp_path / "base")
    back = {"resume_from_checkpoint": str(folder / "checkpoint-4"), "keep": 9}
    assert run(folder, partial(kill_in_step, step=11), **back).code == -9
    again = run(folder, **back)
    assert (
        "checkpoint-8 was made since the rollback to resume_from_checkpoint; resuming from it instead" in again.output
    )
    assert "resuming at step 8" in again.output
    assert again.outcome["weights"] == undisturbed.ended.outcome["weights"]


def test_processes_that_do_not_know_of_each_other_are_refused(tmp_path):
    ended = run(tmp_path / "base", use_cpu=False, processes=2, variables={"CUDA_VISIBLE_DEVICES": ""})
    assert ended.codes == [2, 2]
    assert "2 processes were launched, and each believes to be one of 1" in ended.output


def two_gpus(trainer):
    trainer.args._n_gpu = 2


def test_one_process_with_two_gpus_is_refused_with_the_command_to_launch_two(tmp_path):
    ended = run(tmp_path / "base", two_gpus)
    assert ended.code == 2
    assert "accelerate launch --multi_gpu --num_processes=2" in ended.output


def test_checkpoints_without_optimizer_are_refused(tmp_path):
    ended = run(tmp_path / "base", save_only_model=True)
    assert ended.code == 2
    assert "save_only_model" in ended.output


def test_the_hubs_token_is_in_no_file(tmp_path):
    token = "hf_" + "abcdefghij" * 3
    ended = run(tmp_path / "base", hub_token=token, max_steps=2)
    assert ended.code == 0
    assert (tmp_path / "base" / "checkpoint-2" / "training_args.bin").exists()
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or token.encode() not in path.read_bytes(), path


def test_no_token_is_in_a_checkpoint_a_log_or_what_tensorboard_and_wandb_write(tmp_path):
    hub, wandb, other = ("hf_" + "h" * 34, "w" * 40, "sk-" + "s" * 40)
    variables = {"HF_TOKEN": hub, "WANDB_API_KEY": wandb, "OPENAI_API_KEY": other}
    variables |= {
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(tmp_path),
        "TENSORBOARD_LOGGING_DIR": str(tmp_path / "logs"),
    }
    changes = {"report_to": ["tensorboard", "wandb"], "hub_token": hub, "max_steps": 4}
    ended = run(tmp_path / "base", variables=variables, **changes)
    assert ended.code == 0, ended.output
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"training_args.bin", "base.log"} <= {path.name for path in files}
    for kind in (".wandb", ".tfevents."):
        assert any(kind in path.name for path in files), kind
    for path in files:
        assert not [secret for secret in (hub, wandb, other) if secret.encode() in path.read_bytes()], path


def test_a_killed_rank_ends_the_others_and_the_relaunch_is_exact(undisturbed_by_two, tmp_path):
    ended = run(tmp_path / "base", kill_rank_1_in_step_7, processes=2)
    assert ended.codes == [1, -9]
    assert json.loads((tmp_path / "base" / "run_status.json").read_text())["status"] == "failed"
    again = run(tmp_path / "base", processes=2)
    assert again.codes == [0, 0]
    assert again.outcome == {**undisturbed_by_two, "read": again.outcome["read"]}


def test_fewer_processes_go_on_with_a_word_unless_the_optimizer_is_split_among_them(tmp_path, capsys):
    checkpoint = tmp_path / "checkpoint-4"
    (checkpoint / "global_step4").mkdir(parents=True)
    for name in (
        *("model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json", "rng_state_0.pth"),
        *("rng_state_1.pth", "global_step4/mp_rank_00_model_states.pt", "global_step4/zero_pp_rank_0_optim_states.pt"),
    ):
        (checkpoint / name).write_text("x")
    write_checkpoint_manifest(checkpoint, processes=2, engine="torch")
    check_engine(checkpoint, {"processes": 1, "engine": "torch"})
    assert "2 processes saved, 1 continue" in capsys.readouterr().out
    with pytest.raises(UserError, match="saved by torch with 2 processes; this launch is ZeRO-2 with 2"):
        check_engine(checkpoint, {"processes": 2, "engine": "ZeRO-2"})
    write_checkpoint_manifest(checkpoint, processes=2, engine="ZeRO-2")
    check_engine(checkpoint, {"processes": 2, "engine": "ZeRO-2"})
    with pytest.raises(
        UserError, match=r"(?s)ZeRO-2 with 2 processes; this launch is ZeRO-2 with 1.*--num_processes=2"
    ):
        check_engine(checkpoint, {"processes": 1, "engine": "ZeRO-2"})


@pytest.mark.slow
def test_a_compiled_model_resumes_exactly_and_its_checkpoints_are_those_of_a_plain_one(tmp_path):
    from safetensors.torch import load_file

    whole = run(tmp_path / "whole", torch_compile=True)
    assert run(tmp_path / "base", kill_in_step_7, torch_compile=True).code == -9
    again = run(tmp_path / "base", torch_compile=True)
    assert again.outcome["weights"] == whole.outcome["weights"]
    assert again.outcome["history"] == whole.outcome["history"]
    names = load_file(tmp_path / "base" / "checkpoint-8" / "model.safetensors")
    assert not [name for name in names if "_orig_mod" in name]


@pytest.mark.slow
def test_zero_2_resumes_exactly_skips_what_is_not_finite_and_refuses_other_numbers_of_processes(tmp_path):
    pytest.importorskip("deepspeed")
    keys = ("gradient_clipping", "gradient_accumulation_steps", "train_batch_size", "train_micro_batch_size_per_gpu")
    config = tmp_path / "zero2.json"
    config.write_text(json.dumps({"zero_optimization": {"stage": 2}, **dict.fromkeys(keys, "auto")}))

    def zero(name, *faults, processes=2):
        changes = {"deepspeed": str(config), "variables": {"DS_ACCELERATOR": "cpu"}}
        return start(tmp_path / name, *faults, processes=processes, **changes).end(seconds=240)

    whole = zero("whole")  # the first ever builds DeepSpeed's operator, for about a minute
    assert zero("base", kill_rank_1_in_step_7).codes == [1, -9]
    again = zero("base")
    assert (again.codes, again.outcome["history"]) == ([0, 0], whole.outcome["history"])
    assert again.outcome["weights"] == whole.outcome["weights"]

    refused = zero("base", processes=1)
    assert refused.code == 2
    assert "saved by ZeRO-2 with 2 processes; this launch is ZeRO-2 with 1" in refused.output

    skipped = zero("skipped", partial(nan_loss, steps=[7], rank=1))
    assert skipped.codes == [0, 0]
    assert skipped.output.count("update dropped (1 so far)") == 1
    assert "nan" not in str(skipped.outcome["history"])


def tiny_lora_sft(folder, **changes):
    """TRL's SFTTrainer with a LoRA adapter, on token ids."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    rows = [{key: value.tolist() for key, value in Sequences()[index].items()} for index in range(60)]
    plain = tiny_trainer(folder, **changes)
    settings = {key: getattr(plain.args, key) for key in ("max_steps", "save_steps", "logging_steps", "learning_rate")}
    arguments = SFTConfig(str(folder), use_cpu=True, bf16=False, report_to="none", disable_tqdm=True, **settings)
    return SFTTrainer(
        plain.model,
        arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(target_modules=["q_proj", "v_proj"], lora_dropout=0.1),
    )


def tiny_tokenizer():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {f"w{number}": number for number in range(62)} | {"<eos>": 62, "<pad>": 63}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")), eos_token="<eos>", pad_token="<pad>"
    )


@pytest.mark.slow
def test_trls_sft_trainer_with_lora_resumes_exactly_and_its_metrics_stay_finite(tmp_path):
    whole = run(tmp_path / "whole", build=tiny_lora_sft)
    assert whole.code == 0, whole.output
    assert run(tmp_path / "base", kill_in_step_7, build=tiny_lora_sft).code == -9
    again = run(tmp_path / "base", build=tiny_lora_sft)
    assert [again.outcome[key] for key in ("weights", "history")] == [
        whole.outcome[key] for key in ("weights", "history")
    ]
    skipped = run(tmp_path / "skipped", partial(nan_loss, steps=[7]), build=tiny_lora_sft)
    assert "update dropped (1 so far)" in skipped.output
    assert "nan" not in str(skipped.outcome["history"])
