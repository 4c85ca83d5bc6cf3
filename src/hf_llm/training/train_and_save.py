"""The one ending all training stages share: resume, train, evaluate, save, card, manifest, push."""

import gc
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import Trainer

from hf_llm.core.console import is_main_process
from hf_llm.core.manifest import digest_of
from hf_llm.core.recipe import plain
from hf_llm.pipeline.run import Run, StageOutput, licenses_of
from hf_llm.reporting.model_card import model_card
from hf_llm.training.fault_tolerance.loss_spikes import Spikes
from hf_llm.training.fault_tolerance.resume import train
from hf_llm.training.hub_upload import end_uploads, push

if TYPE_CHECKING:
    from peft import PeftModel

ROWS = "rows"  # what the stages that tune on rows share between processes, in a stage's folder until it is finished


def finish(
    trainer: Trainer,
    making: StageOutput,
    run: Run,
    headline: str,
    measure: Callable[[], dict[str, Any]] | None = None,
    spikes: Spikes | None = None,
    **facts: Any,
) -> None:
    """Train to the end under all guards, then make `making.path` a model folder that `from_pretrained` opens.

    `headline` is a format string over the evaluation's numbers, as "{eval_loss:.3f} loss", and over those that
    `measure` finds on the model that is saved (in the first process); `spikes` says which updates to skip, none where
    it is left out; `facts` go into the manifest.
    """
    args, folder = trainer.args, making.path
    train(trainer, fingerprint=fingerprint(trainer, making), spikes=spikes)
    metrics = last_evaluation(trainer) or trainer.evaluate()
    save(trainer, folder)
    trainer.save_state()
    if is_main_process():
        shutil.rmtree(folder / ROWS, ignore_errors=True)
        if measure is not None:
            metrics = {**metrics, **measure()}
        inputs = [run.root / name for name in making.inputs if (run.root / name).exists()]
        facts |= {"steps": trainer.state.global_step, "metrics": metrics, "processes": args.world_size}
        facts["arguments"] = plain(args.to_dict())  # which hides tokens
        making.complete(headline.format(**metrics), licenses_of(*inputs) + facts.pop("licenses", []), **facts)
        (folder / "README.md").write_text(model_card(folder, trainer.hub_model_id), encoding="utf-8")
    leave(trainer)
    if args.push_to_hub and is_main_process():
        end_uploads(trainer)
        push(trainer.hub_model_id, folder)


def leave(trainer: Trainer) -> None:
    """Take the processes of a launch apart: all together, and with nothing left to do for the interpreter's exit.

    A process that leaves first closes connections another still listens on. What wraps the model (DDP, DeepSpeed's
    engine) holds the process group and its threads, and is part of reference cycles, which would be freed as late as
    at the interpreter's exit, where a thread that asks for the interpreter ends in an abort.
    """
    trainer.accelerator.wait_for_everyone()
    trainer.model_wrapped = trainer.deepspeed = None
    trainer.accelerator.free_memory()
    gc.collect()
    trainer.accelerator.end_training()


def last_evaluation(trainer: Trainer) -> dict[str, float] | None:
    """The evaluation of the model that the training ends with, if there was one: that of the last step, or of the best
    where `load_best_model_at_end` has brought it back."""
    entries = (entry for entry in reversed(trainer.state.log_history) if "eval_loss" in entry)
    best = trainer.state.best_global_step if trainer.args.load_best_model_at_end else None
    return next((entry for entry in entries if entry["step"] == (best or trainer.state.global_step)), None)


def fingerprint(trainer: Trainer, making: StageOutput) -> dict[str, Any]:
    """What must be the same for a checkpoint of this training to be continued."""
    args = trainer.args
    return {
        "settings": digest_of(making.settings),
        **{f"input {name}": value for name, value in making.inputs.items()},
        "samples per step": trainer.get_total_train_batch_size(args),
        "training samples": len(trainer.train_dataset),
        **({"rows": trainer.rows_digest} if hasattr(trainer, "rows_digest") else {}),
    }


def save(trainer: Trainer, folder: Path) -> None:
    """Save the whole model and its tokenizer to `folder`; a LoRA adapter is merged, and kept beside in `adapter/`."""
    from peft import PeftModel

    model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    model = getattr(model, "policy", model)  # PPO trains a policy together with its critic, which is not kept
    if not isinstance(model, PeftModel):
        trainer.save_model(str(folder), _internal_call=True)  # no push yet
    else:
        trainer.save_model(str(folder / "adapter"), _internal_call=True)
        if is_main_process():
            save_merged(model, folder)
            trainer.processing_class.save_pretrained(folder)
    if is_main_process():
        # A pickle of this machine's settings: of no use to who downloads the model, and a risk to load.
        for stray in (folder / "training_args.bin", folder / "adapter" / "training_args.bin"):
            stray.unlink(missing_ok=True)


def save_merged(trained: "PeftModel", folder: Path) -> None:
    """Write base + `folder/adapter` as one model, both loaded anew: so it works however a launcher split them."""
    from peft import PeftModel
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    from hf_llm.model.load import load_model, load_reward_model

    unset_hf_deepspeed_config()  # under ZeRO-3 transformers would split the base over processes that are not here
    adapter = trained.peft_config["default"]
    load = load_reward_model if adapter.task_type == "SEQ_CLS" else load_model
    base = load(adapter.base_model_name_or_path)
    merged = PeftModel.from_pretrained(base, folder / "adapter").merge_and_unload()
    if merged.can_generate():
        merged.generation_config = trained.generation_config
    merged.save_pretrained(folder)
