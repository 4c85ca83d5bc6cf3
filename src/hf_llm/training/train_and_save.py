"""Turn a Trainer that is ready to run into a finished model folder that `from_pretrained` opens.

All training stages share these steps: resume, train, evaluate, save, write manifest and model card, upload.
"""

import gc
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import Trainer

from hf_llm.core.console import is_main_process
from hf_llm.core.manifest import digest_of
from hf_llm.core.recipe import to_plain
from hf_llm.evaluation.metrics import format_headline
from hf_llm.pipeline.run import Run, StageOutput, licenses_of
from hf_llm.reporting.model_card import write_adapter_card, write_model_card
from hf_llm.training.fault_tolerance.loss_spikes import SpikeSection
from hf_llm.training.fault_tolerance.resume import train_with_guards
from hf_llm.training.hub_upload import upload_model_folder, wait_for_uploads

if TYPE_CHECKING:
    from peft import PeftModel

# The folder, inside a stage's output until the stage is complete, where post-training caches its tokenized rows.
ROWS_FOLDER = "rows"


def train_and_save(
    trainer: Trainer,
    output: StageOutput,
    run: Run,
    headline: str,
    measure: Callable[[], dict[str, Any]] | None = None,
    spikes: SpikeSection | None = None,
    **facts: Any,
) -> None:
    """Train to the end under all guards, then turn `output.path` into a model folder that `from_pretrained` opens.

    `headline` is a format string, as "{eval_loss:.3f} loss". Its values are the metrics of the last evaluation and
    those that `measure` returns for the saved model (it is called in the first process only). `spikes` says which
    updates to skip; None skips none. `facts` go into the manifest.
    """
    train_with_guards(trainer, fingerprint=training_fingerprint(trainer, output), spikes=spikes)
    metrics = last_evaluation(trainer) or trainer.evaluate()

    save_model_folder(trainer, output.path)
    trainer.save_state()

    if is_main_process():
        shutil.rmtree(output.path / ROWS_FOLDER, ignore_errors=True)
        if measure is not None:
            metrics = {**metrics, **measure()}
        _complete_output(trainer, output, run, headline, metrics, facts)

    shut_down_process_group(trainer)
    if trainer.args.push_to_hub and is_main_process():
        wait_for_uploads(trainer)
        upload_model_folder(trainer.hub_model_id, output.path)


def _complete_output(
    trainer: Trainer, output: StageOutput, run: Run, headline: str, metrics: dict[str, Any], facts: dict[str, Any]
) -> None:
    """Write the manifest and the model card of a saved model."""
    input_folders = [run.root / name for name in output.inputs]
    input_folders = [folder for folder in input_folders if folder.exists()]
    licenses = licenses_of(*input_folders) + facts.pop("licenses", [])

    facts["steps"] = trainer.state.global_step
    facts["metrics"] = metrics
    facts["processes"] = trainer.args.world_size
    facts["arguments"] = to_plain(trainer.args.to_dict())  # `to_dict` hides tokens
    if (output.path / "adapter").exists():
        write_adapter_card(output.path / "adapter", output.folder, licenses)
    output.complete(format_headline(headline, metrics), licenses, **facts)
    write_model_card(output.path, trainer.hub_model_id)


def shut_down_process_group(trainer: Trainer) -> None:
    """End the process group of a launch in all processes at once, and before the interpreter exits.

    At once, because a process that leaves first closes connections that another still listens on. Before the exit,
    because the wrapper of the model (DDP, DeepSpeed's engine) holds the process group and its threads in reference
    cycles: freed only while the interpreter exits, a thread that asks for the interpreter would abort the process.
    """
    trainer.accelerator.wait_for_everyone()
    trainer.model_wrapped = None
    trainer.deepspeed = None
    trainer.accelerator.free_memory()
    gc.collect()
    trainer.accelerator.end_training()


def last_evaluation(trainer: Trainer) -> dict[str, float] | None:
    """Return the log entry that evaluated the final model; None where there is none.

    The final model is that of the last step, or with `load_best_model_at_end` that of the best step.
    """
    final_step = trainer.state.global_step
    if trainer.args.load_best_model_at_end:
        final_step = trainer.state.best_global_step or final_step

    for entry in reversed(trainer.state.log_history):
        if "eval_loss" in entry and entry["step"] == final_step:
            return entry
    return None


def training_fingerprint(trainer: Trainer, output: StageOutput) -> dict[str, Any]:
    """Return the settings and data that must be the same in a checkpoint and in the training that resumes from it."""
    fingerprint = {"settings": digest_of(output.settings)}
    for name, digest in output.inputs.items():
        fingerprint[f"input {name}"] = digest
    fingerprint["samples per step"] = trainer.get_total_train_batch_size(trainer.args)
    fingerprint["training samples"] = len(trainer.train_dataset)
    if hasattr(trainer, "rows_digest"):
        fingerprint["rows"] = trainer.rows_digest
    return fingerprint


def save_model_folder(trainer: Trainer, folder: Path) -> None:
    """Save the whole model and its tokenizer to `folder`; a LoRA adapter is merged, and also kept in `adapter/`."""
    from peft import PeftModel

    model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    model = getattr(model, "policy", model)  # PPO trains a policy together with its critic, which is not kept

    if isinstance(model, PeftModel):
        trainer.save_model(str(folder / "adapter"), _internal_call=True)  # an internal call pushes nothing yet
        if is_main_process():
            save_merged_adapter(model, folder)
            trainer.processing_class.save_pretrained(folder)
    else:
        trainer.save_model(str(folder), _internal_call=True)

    if is_main_process():
        # A pickle of this machine's settings is of no use to whoever downloads the model, and unsafe to load.
        (folder / "training_args.bin").unlink(missing_ok=True)
        (folder / "adapter" / "training_args.bin").unlink(missing_ok=True)


def save_merged_adapter(trained: "PeftModel", folder: Path) -> None:
    """Merge the base model and the adapter in `folder/adapter`, and save them as one model in `folder`.

    Both are loaded again from disk, so that they are whole even where a launch has sharded the trained ones.
    """
    from peft import PeftModel
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    from hf_llm.model.load import load_model, load_reward_model

    # Under ZeRO-3 transformers would split the base model over processes that do not take part in this.
    unset_hf_deepspeed_config()

    adapter_config = trained.peft_config["default"]
    is_reward_model = adapter_config.task_type == "SEQ_CLS"
    load_base = load_reward_model if is_reward_model else load_model
    base = load_base(adapter_config.base_model_name_or_path)

    merged = PeftModel.from_pretrained(base, folder / "adapter").merge_and_unload()
    if merged.can_generate():
        merged.generation_config = trained.generation_config
    merged.save_pretrained(folder)
