"""Each optimizer for real: the loss falls, a resumed training ends in the same bits. What decays, what is refused."""

from importlib.util import find_spec

import pytest
import torch
from torch.utils.data import Dataset
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    TrainingArguments,
)

from hf_llm.core.errors import UserError
from hf_llm.core.recipe import Settings
from hf_llm.training.arguments import build_training_arguments
from hf_llm.training.optimizers import build_arguments, build_optimizer, check_optimizer
from hf_llm.training.pretraining_trainer import PretrainingTrainer
from tests.tiny_models import tiny_model
from tests.variants import CHANGES

SIZES = {
    **{"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32},
    **{"embedding_size": 16, "max_position_embeddings": 64, "num_key_value_heads": 1, "num_local_experts": 2},
    **{"n_embd": 16, "n_layer": 2, "n_head": 2, "d_model": 16, "d_ff": 32, "num_layers": 2, "num_heads": 2, "d_kv": 8},
    **{"dim": 16, "hidden_dim": 32, "n_layers": 2, "n_heads": 2, "state_size": 4},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2},
}
MASKED = ("bert", "albert", "modernbert", "distilbert")
FAMILIES = ("gpt2", "llama", "mixtral", "mamba", "t5", *MASKED)


class Rows(Dataset):
    """Tokens of which every second one repeats the one before."""

    def __init__(self):
        self.tokens = torch.randint(0, 64, (64, 24), generator=torch.Generator().manual_seed(1))
        self.tokens[:, 1::2] = self.tokens[:, ::2]

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.tokens[index], "labels": self.tokens[index]}


def trained(folder, name: str, resume=None) -> PretrainingTrainer:
    settings = {
        **{"output_dir": folder, "use_cpu": True, "report_to": "none", "disable_tqdm": True, "optim": name},
        **{"max_steps": 20, "logging_steps": 1, "save_steps": 10, "per_device_train_batch_size": 8},
        **{"learning_rate": 3e-3, "weight_decay": 0.1},
    }
    trainer = PretrainingTrainer(tiny_model(), build_arguments(TrainingArguments, settings), train_dataset=Rows())
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def ending(trainer: PretrainingTrainer) -> tuple[list[float], torch.Tensor]:
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


def of_package(name: str, *packages: str, slow: bool = False):
    missing = [package for package in packages if find_spec(package) is None]
    marks = [pytest.mark.skipif(bool(missing), reason=f"needs {missing}"), *([pytest.mark.slow] if slow else [])]
    return pytest.param(name, marks=marks)


@pytest.mark.parametrize(
    "name",
    [
        *("adamw_torch_fused", "muon", "adafactor"),
        of_package("adamw_8bit", "bitsandbytes"),
        of_package("lion_8bit", "bitsandbytes"),
        of_package("galore_adamw", "galore_torch", "bitsandbytes"),
        of_package("apollo_adamw", "apollo_torch", "bitsandbytes"),
        of_package("adamw_torch_8bit", "torchao", slow=True),
        of_package("adamw_torch_4bit", "torchao", slow=True),
    ],
)
def test_the_loss_falls_and_a_resumed_training_ends_in_the_same_bits(tmp_path, name):
    losses, weights = ending(trained(tmp_path, name))
    assert losses[-1] < losses[0] - 0.2
    again, resumed = ending(trained(tmp_path, name, resume=str(tmp_path / "checkpoint-10")))
    assert again == losses
    assert torch.equal(resumed, weights)


# ---- weight decay


def decayed(model: torch.nn.Module) -> set[str]:
    trainer = PretrainingTrainer.__new__(PretrainingTrainer)  # which this does not ask anything of
    return set(trainer.get_decay_parameter_names(model))


def check_decay(model: torch.nn.Module, tables_of_biases: str | None = None) -> None:
    expected = {name for name, parameter in model.named_parameters() if parameter.ndim >= 2}
    if tables_of_biases:
        expected = {name for name in expected if tables_of_biases not in name}
    assert decayed(model) == expected
    assert len(expected) < len(list(model.parameters()))


@pytest.mark.parametrize("name", CHANGES)
def test_of_every_variant_matrices_decay_and_norms_and_biases_never(name):
    check_decay(tiny_model(**CHANGES[name]))


@pytest.mark.parametrize("family", FAMILIES)
def test_of_other_families_too(family):
    cls = CONFIG_MAPPING[family]
    known = {*cls.__dataclass_fields__, *cls.attribute_map}
    config = cls(**{key: value for key, value in SIZES.items() if key in known})
    auto = AutoModelForMaskedLM if family in MASKED else AutoModelForCausalLM
    with torch.device("meta"):
        model = (AutoModelForSeq2SeqLM if family == "t5" else auto).from_config(config)
    check_decay(model, "relative_attention_bias" if family == "t5" else None)


def test_the_optimizer_gets_those_groups(tmp_path):
    for name in ("adamw_torch_fused", "muon"):
        trainer = PretrainingTrainer(tiny_model(), arguments(tmp_path, optim=name, weight_decay=0.1))
        groups = trainer.create_optimizer().param_groups
        assert {group["weight_decay"]: min(p.ndim for p in group["params"]) for group in groups} == {0.1: 2, 0.0: 1}


@pytest.mark.skipif(not (find_spec("galore_torch") and find_spec("bitsandbytes")), reason="needs galore_torch")
def test_galore_projects_the_matrices_inside_layers_and_decays_what_others_decay(tmp_path):
    model = tiny_model()
    trainer = PretrainingTrainer(model, arguments(tmp_path, optim="galore_adamw", weight_decay=0.1))
    names = {parameter: name for name, parameter in model.named_parameters()}
    for group in trainer.create_optimizer().param_groups:
        for parameter in group["params"]:
            assert ("rank" in group) == (".layers." in names[parameter] and parameter.ndim == 2), names[parameter]
            assert group["weight_decay"] == (0.1 if parameter.ndim == 2 else 0.0), names[parameter]


# ---- what is refused


def arguments(folder, **settings) -> TrainingArguments:
    given = Settings({"report_to": "none", "save_strategy": "no", **settings})
    return build_training_arguments(TrainingArguments, given, folder, 0, "pretrain")


@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_a_missing_package_is_told_with_the_command_that_installs_it(tmp_path):
    with pytest.raises(UserError, match=r"pretrain\.training\.optim: adamw_8bit needs .*'hf-llm\[optimizers\]'"):
        arguments(tmp_path, optim="adamw_8bit")


@pytest.mark.skipif(find_spec("schedulefree") is not None, reason="schedulefree is installed")
def test_of_others_trainers_own_remedy_is_told(tmp_path):
    with pytest.raises(UserError, match="pip install schedulefree"):
        arguments(tmp_path, optim="schedule_free_adamw")


@pytest.mark.parametrize("name", ["galore_adamw_layerwise", "lomo", "adalomo"])
def test_steps_amid_the_backward_pass_are_refused(tmp_path, name):
    with pytest.raises(UserError, match=f"{name} changes weights during the backward pass"):
        arguments(tmp_path, optim=name)


def test_parts_of_weights_are_refused_to_those_that_need_whole_ones(tmp_path, monkeypatch):
    settings = {"output_dir": tmp_path, "use_cpu": True, "report_to": "none"}
    names = ("adafactor", "galore_adamw", "adamw_8bit", "adamw_torch_fused")
    built = {name: build_arguments(TrainingArguments, {**settings, "optim": name}) for name in names}
    with monkeypatch.context() as patch:
        patch.setenv("ACCELERATE_USE_FSDP", "true")
        for name in names[:-1]:
            with pytest.raises(UserError, match=f"pretrain.training.optim: {name} cannot step on the parts"):
                check_optimizer(built[name], "pretrain")
        check_optimizer(built["adamw_torch_fused"], "pretrain")
    with monkeypatch.context() as patch:
        patch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
        with pytest.raises(UserError, match="galore_adamw projects whole matrices"):
            check_optimizer(built["galore_adamw"], "pretrain")
        check_optimizer(built["adafactor"], "pretrain")


def test_of_an_unknown_optimizer_the_nearest_name_is_told_or_all(tmp_path):
    with pytest.raises(UserError, match=r"pretrain\.training: optim: 'muonn' is not an optimizer; did you mean muon\?"):
        arguments(tmp_path, optim="muonn")
    with pytest.raises(UserError, match=r"'xyz' is not an optimizer; known: muon, adamw_torch, .*adafactor"):
        arguments(tmp_path, optim="xyz")


def test_settings_that_an_optimizer_does_not_take_are_told(tmp_path):
    trainer = PretrainingTrainer(tiny_model(), arguments(tmp_path, optim="rmsprop", optim_args="alpha=high"))
    with pytest.raises(UserError, match=r"pretrain\.training\.optim: could not convert string to float"):
        trainer.create_optimizer()


def test_the_optimizer_of_a_plan_is_that_of_the_training(tmp_path):
    model = tiny_model()
    for name in ("muon", "adafactor"):
        planned = build_optimizer(arguments(tmp_path, optim=name), model)
        made = PretrainingTrainer(tiny_model(), arguments(tmp_path, optim=name)).create_optimizer()
        assert type(planned) is type(made)
        assert sum(len(group["params"]) for group in planned.param_groups) == len(list(model.parameters()))
