"""Turn a Trainer that is ready to run into a finished model folder that `from_pretrained` opens.

All training stages share these steps: resume, train, evaluate, save, write manifest and model card, upload.
"""

import gc
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import Trainer

from hf_llm.core.console import is_main_process, print_main
from hf_llm.core.errors import UserError
from hf_llm.core.recipe import to_plain
from hf_llm.evaluation.metrics import format_headline
from hf_llm.model.load import enable_cache
from hf_llm.monitoring.callbacks.samples import weights_are_sharded
from hf_llm.pipeline.run import Run, StageOutput, licenses_of
from hf_llm.pipeline.stages import STAGES
from hf_llm.reporting.model_card import write_adapter_card, write_model_card
from hf_llm.training.fault_tolerance.loss_spikes import SpikeSection
from hf_llm.training.fault_tolerance.resume import ResumeTerms, train_with_guards
from hf_llm.training.hub_upload import push_checkpoint, upload_model_folder, wait_for_uploads
from hf_llm.training.schedules import ScheduleCheck
from hf_llm.training.training_time import describe_training_time

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

# The largest difference of logits between a merged model and the trained one, relative to the largest logit where that
# is above 1: what rounding makes in float32, and where the trained model computes in half precision.
MERGE_TOLERANCE = 1e-3
HALF_PRECISION_TOLERANCE = 5e-2

# The folder, inside a stage's output until the stage is complete, where post-training caches its tokenized rows.
ROWS_FOLDER = "rows"


def train_and_save(
    trainer: Trainer,
    output: StageOutput,
    run: Run,
    headline: str,
    measure: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    spikes: SpikeSection | None = None,
    **facts: Any,
) -> None:
    """Train to the end under all guards, then turn `output.path` into a model folder that `from_pretrained` opens.

    `headline` is a format string, as "{eval_loss:.3f} loss". Its values are the metrics of the last evaluation and
    those that `measure` returns for the saved model (it gets those metrics, in the first process only). `spikes` says
    which updates to skip; None skips none. `facts` go into the manifest.
    """
    section = STAGES[output.folder].section
    trainer.add_callback(ScheduleCheck(section))
    trainer._push_from_checkpoint = partial(push_checkpoint, trainer)  # Trainer's own would upload more than the model
    terms = ResumeTerms(
        former_settings=output.former_settings,
        extend=run.tree[section].get("extend", False),
        section=section,
        on_begin=output.accept_changes,
    )
    print_main(describe_training_time(trainer, output.folder))
    train_with_guards(trainer, fingerprint=training_fingerprint(trainer, output), spikes=spikes, terms=terms)
    if not trainer.state.global_step:
        raise UserError(f"{output.folder}: no step was trained, so there is no model to save; check training.max_steps")
    metrics = last_evaluation(trainer) or trainer.evaluate()

    save_model_folder(trainer, output.path)
    trainer.save_state()

    if is_main_process():
        shutil.rmtree(output.path / ROWS_FOLDER, ignore_errors=True)
        if measure is not None:
            metrics = {**metrics, **measure(metrics)}
        _complete_output(trainer, output, run, headline, metrics, facts)

    shut_down_process_group(trainer)
    if trainer.args.push_to_hub and is_main_process():
        wait_for_uploads(trainer)
        upload_model_folder(trainer.hub_model_id, output.path)


def _complete_output(
    trainer: Trainer, output: StageOutput, run: Run, headline: str, metrics: dict[str, Any], facts: dict[str, Any]
) -> None:
    """Write the manifest and the model card of a saved model."""
    licenses = licenses_of(*output.sources.values()) + facts.pop("licenses", [])

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

    The final model is that of the last step, or with `load_best_model_at_end` that of the best step. An entry without
    the counts that the trainer logs is of an older version, which took means over batches, and is not used.
    """
    counts = [f"eval_{unit}" for unit in getattr(trainer, "logged_units", ())]
    final_step = trainer.state.global_step
    if trainer.args.load_best_model_at_end:
        final_step = trainer.state.best_global_step or final_step

    for entry in reversed(trainer.state.log_history):
        is_exact = all(count in entry for count in counts)
        if "eval_loss" in entry and entry["step"] == final_step and is_exact:
            return entry
    return None


def training_fingerprint(trainer: Trainer, output: StageOutput) -> dict[str, Any]:
    """Return the settings and data that must be the same in a checkpoint and in the training that resumes from it.

    Of the settings, those that change the arithmetic of a step (`list_changes`).
    """
    fingerprint = {"settings": output.settings}
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
    enable_cache(model.config)

    if isinstance(model, PeftModel):
        trainer.save_model(str(folder / "adapter"), _internal_call=True)  # an internal call pushes nothing yet
        if is_main_process():
            is_whole = not weights_are_sharded(trainer)
            is_exact = not (trainer.args.bf16 or trainer.args.fp16) and not trainer.is_deepspeed_enabled
            save_merged_adapter(model, folder, is_whole, is_exact)
            trainer.processing_class.save_pretrained(folder)
    else:
        trainer.save_model(str(folder), _internal_call=True)

    if is_main_process():
        # A pickle of this machine's settings is of no use to whoever downloads the model, and unsafe to load.
        (folder / "training_args.bin").unlink(missing_ok=True)
        (folder / "adapter" / "training_args.bin").unlink(missing_ok=True)


def save_merged_adapter(trained: "PeftModel", folder: Path, is_whole: bool = True, is_exact: bool = True) -> None:
    """Merge the base model and the adapter in `folder/adapter`, save them as one model in `folder`, and compare that
    with the trained one.

    Both are loaded again from disk, so that they are whole even where a launch has sharded the trained ones
    (`is_whole` is then False). The saved model must be the trained one; where that is sharded, in few bits or in half
    precision (`is_exact` is False), it is compared with base and adapter as they lie on the disk, too. Raises UserError
    where it is another model; then the adapter alone is kept.
    """
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    from hf_llm.model.adapters import attach_adapter, merge_into_base

    # Under ZeRO-3 transformers would split the base model over processes that do not take part in this.
    unset_hf_deepspeed_config()

    base_path = trained.peft_config["default"].base_model_name_or_path
    load_base = _choose_loader(trained)
    model = attach_adapter(load_base(base_path), folder / "adapter")
    was_tied = model.config.tie_word_embeddings
    merged = merge_into_base(model)
    if merged.can_generate():
        merged.generation_config = trained.generation_config
    merged.save_pretrained(folder)
    if was_tied and not merged.config.tie_word_embeddings:
        print_main(
            f"{folder}: the adapter changes one of the two embeddings, which were one matrix; the saved model has two"
        )
    del model, merged

    saved = load_base(folder)
    is_quantized = getattr(trained, "is_quantized", False)
    if is_whole and not is_quantized:
        check_saved_model(saved, trained, folder, MERGE_TOLERANCE if is_exact else HALF_PRECISION_TOLERANCE)
    if not is_whole or is_quantized or not is_exact:
        check_saved_model(saved, attach_adapter(load_base(base_path), folder / "adapter"), folder, MERGE_TOLERANCE)


def check_saved_model(
    saved: "PreTrainedModel", trained: "PreTrainedModel | PeftModel", folder: Path, tolerance: float
) -> None:
    """Raise UserError, and delete the saved weights, where the logits of one batch differ by more than `tolerance`."""
    from hf_llm.model.adapters import largest_logit_difference, probe_tokens

    tokens = probe_tokens(saved.config.vocab_size, getattr(saved.config, "max_position_embeddings", None))
    with full_precision_products():
        difference, scale = largest_logit_difference(trained, saved, tokens)
    if difference <= tolerance * max(1.0, scale):  # NaN is not
        return
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    raise UserError(
        f"{folder}: the merged model is not the one that was trained: their logits differ by {difference:.2g}. The "
        f"adapter is kept in {folder / 'adapter'}, to be used with its base unmerged; change the lora section "
        "(target_modules, init_lora_weights) and start again"
    )


@contextmanager
def full_precision_products() -> Iterator[None]:
    """Compute float32 matrix products in float32, where a GPU would use TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _choose_loader(trained: "PeftModel") -> Callable[[Path | str], "PreTrainedModel"]:
    from hf_llm.model.load import load_model, load_reward_model

    is_reward_model = trained.peft_config["default"].task_type == "SEQ_CLS"
    return load_reward_model if is_reward_model else load_model
