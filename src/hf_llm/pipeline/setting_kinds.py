"""Say of every setting of a recipe what changing it means for a training that has begun: one table.

A setting is `free` where the arithmetic of a step stays what it was: what is logged, kept, sent or evaluated, how much
memory and time a step takes, and how it is split into micro-batches. Every other setting is `fixed`: the training, or
the finished model, belongs to another recipe then. A name that is in no list is fixed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["free", "fixed", "batch", "horizon", "input"]

# Keys of a `training` section: those of TrainingArguments, TRL's configs and PPOConfig.
FREE_ARGUMENTS = frozenset(
    """
    logging_strategy logging_steps logging_first_step log_on_each_node logging_nan_inf_filter
    include_num_input_tokens_seen log_level log_level_replica disable_tqdm report_to run_name project trackio_space_id
    trackio_bucket_id trackio_static_space_id log_completions log_multimodal num_completions_to_print log_unique_prompts
    log_completions_hub_repo skip_memory_metrics debug

    eval_strategy eval_steps eval_delay eval_on_start per_device_eval_batch_size eval_accumulation_steps
    eval_do_concat_batches eval_use_gather_object include_for_metrics batch_eval_metrics prediction_loss_only
    bf16_full_eval fp16_full_eval eval_packing num_generations_eval

    save_strategy save_steps save_total_limit save_only_model save_on_each_node enable_jit_checkpoint
    resume_from_checkpoint output_dir do_train do_eval do_predict local_rank

    push_to_hub hub_token hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision

    auto_find_batch_size gradient_checkpointing gradient_checkpointing_kwargs activation_checkpointing
    activation_checkpointing_kwargs activation_offloading torch_empty_cache_steps use_cache cache_implementation
    precompute_ref_log_probs precompute_ref_batch_size ds3_gather_for_generation pad_to_multiple_of

    torch_compile torch_compile_backend torch_compile_mode use_liger_kernel liger_kernel_config full_determinism use_cpu

    ddp_timeout ddp_backend ddp_bucket_cap_mb ddp_find_unused_parameters ddp_static_graph fsdp fsdp_config deepspeed

    dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor
    dataloader_multiprocessing_context dataset_num_proc trust_remote_code

    vllm_server_base_url vllm_server_host vllm_server_port vllm_server_timeout vllm_group_port vllm_enable_sleep_mode
    vllm_gpu_memory_utilization vllm_tensor_parallel_size
    """.split()  # noqa: SIM905 - a table to be read
)

FIXED_ARGUMENTS = frozenset(
    """
    learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps optim optim_args optim_target_modules weight_decay
    adam_beta1 adam_beta2 adam_epsilon max_grad_norm label_smoothing_factor label_smoothing neftune_noise_alpha
    average_tokens_across_devices bf16 fp16 tf32 cast_lm_head_to_fp32

    load_best_model_at_end metric_for_best_model greater_is_better ignore_data_skip
    restore_callback_states_from_checkpoint

    seed data_seed accelerator_config parallelism_config dataloader_drop_last dataloader_in_order remove_unused_columns
    label_names train_sampling_strategy length_column_name ddp_broadcast_buffers

    model_init_kwargs chat_template_path chat_template_kwargs dataset_text_field dataset_kwargs eos_token pad_token
    max_length truncation_mode shuffle_dataset packing packing_strategy padding_free completion_only_loss
    assistant_only_loss loss_type loss_weights router_aux_loss_coef disable_dropout center_rewards_coefficient

    beta ld_alpha f_divergence_type f_alpha_divergence_coef use_weighting discopop_tau sync_ref_model
    ref_model_mixup_alpha ref_model_sync_steps desirable_weight undesirable_weight

    num_generations max_completion_length generation_batch_size steps_per_generation temperature top_p top_k min_p
    generation_kwargs repetition_penalty use_vllm vllm_mode vllm_model_impl vllm_structured_outputs_regex
    vllm_max_model_length vllm_importance_sampling_correction vllm_importance_sampling_mode
    vllm_importance_sampling_cap vllm_importance_sampling_clip_max vllm_importance_sampling_clip_min
    use_transformers_continuous_batching transformers_continuous_batching_config use_transformers_paged
    num_iterations epsilon delta epsilon_high sapo_temperature_neg sapo_temperature_pos vespo_k_pos vespo_lambda_pos
    vespo_k_neg vespo_lambda_neg importance_sampling_level reward_weights multi_objective_aggregation scale_rewards
    mask_truncated_completions top_entropy_quantile entropy_coef use_adaptive_entropy entropy_coef_min entropy_coef_max
    entropy_coef_delta entropy_target max_tool_calling_iterations off_policy_mask_threshold use_bias_correction_kl
    normalize_advantages reward_clip_range

    num_ppo_epochs num_mini_batches kl_coef kl_target kl_horizon kl_estimator gamma lam cliprange cliprange_value
    vf_coef critic missing_eos_penalty reward_clip normalize_rewards
    """.split()  # noqa: SIM905 - a table to be read
)

# Their product counts, except where a step's loss depends on the micro-batch (`MICRO_BATCH_STAGES`).
BATCH_ARGUMENTS = frozenset(["per_device_train_batch_size", "gradient_accumulation_steps"])

# How long the training is: a longer one continues the shorter one (`hf_llm.training.fault_tolerance.horizon`).
HORIZON_ARGUMENTS = frozenset(["max_steps", "num_train_epochs"])

# Keys of sections, beside `training`: `section.key`, or `*.key` for the same key of every section.
FREE_KEYS = frozenset(
    [
        "pretrain.evaluation_tokens",
        "pretrain.samples",
        "pretrain.evaluate_tasks",
        "model.attn_implementation",
        "model.use_cache",
        "*.allow_drop",
        "*.extend",
    ]
)

# Keys that name an input: the digest of what they name is compared instead.
INPUT_KEYS = frozenset(
    ["pretrain.start_from", "pretrain.tokens", "pretrain.tokenizer", "evaluate.models", "*.model", "*.reward_model"]
)

# KTO estimates its KL from the rows of a micro-batch; PPO makes the mini-batches of a rollout of micro-batches.
MICRO_BATCH_STAGES = frozenset(["kto", "ppo"])

# The defaults of the two batch arguments, in TrainingArguments and in every class that inherits from it.
DEFAULT_MICRO_BATCH = 8
DEFAULT_ACCUMULATION = 1
DEFAULT_EPOCHS = 3.0

# Values that mean the same arithmetic: the fused optimizer is the plain one in another kernel.
SAME_VALUES = {"adamw_torch_fused": "adamw_torch"}


@dataclass(frozen=True)
class Change:
    """A setting that differs between two recipes."""

    key: str
    kind: Kind
    old: Any
    """The recorded value; `NOT_SET` where there was none."""
    new: Any
    """The present value; `NOT_SET` where there is none."""

    def describe(self) -> str:
        """Return the change in words: `sft.seed: was 1, is 2`."""
        return f"{self.key}: was {self.old!r}, is {self.new!r}"


class _NotSet:
    def __repr__(self) -> str:
        return "not set"


NOT_SET = _NotSet()


def kind_of(key: str) -> Kind:
    """Return the kind of a setting by its full key, as `sft.training.max_steps`."""
    section, _, rest = key.partition(".")
    name, _, argument = rest.partition(".")
    if name == "training" and argument:
        argument = argument.split(".")[0].split("[")[0]
        if argument in FREE_ARGUMENTS:
            return "free"
        if argument in BATCH_ARGUMENTS:
            return "batch"
        if argument in HORIZON_ARGUMENTS:
            return "horizon"
        return "fixed"

    name = name.split("[")[0]
    if f"{section}.{name}" in INPUT_KEYS or f"*.{name}" in INPUT_KEYS:
        return "input"
    if f"{section}.{name}" in FREE_KEYS or f"*.{name}" in FREE_KEYS:
        return "free"
    return "fixed"


def list_changes(old: dict[str, Any], new: dict[str, Any]) -> list[Change]:
    """List the settings that differ between two recipes, given flat and by full key, sorted; inputs are not compared.

    A micro-batch and an accumulation whose product is what it was are a free change.
    """
    changes = []
    for key in sorted({*old, *new}):
        before = old.get(key, NOT_SET)
        after = new.get(key, NOT_SET)
        kind = kind_of(key)
        if kind != "input" and not _are_equal(before, after):
            changes.append(Change(key, kind, before, after))
    return list(_settle_batches(changes, old, new))


def is_longer(changes: list[Change]) -> bool:
    """Whether changes of a training's length can only make it longer, as far as the recipe tells."""
    lengths = {change.key.rpartition(".")[2]: change for change in changes if change.kind == "horizon"}
    if "max_steps" in lengths:
        old = lengths["max_steps"].old
        new = lengths["max_steps"].new
    elif "num_train_epochs" in lengths:
        old = lengths["num_train_epochs"].old
        new = lengths["num_train_epochs"].new
        old = DEFAULT_EPOCHS if old is NOT_SET else old
        new = DEFAULT_EPOCHS if new is NOT_SET else new
    else:
        return False
    is_number = all(isinstance(value, int | float) and value > 0 for value in (old, new))
    return is_number and new > old


def _are_equal(old: Any, new: Any) -> bool:
    if isinstance(old, str) and isinstance(new, str):
        return SAME_VALUES.get(old, old) == SAME_VALUES.get(new, new)
    return old == new


def _settle_batches(changes: list[Change], old: dict[str, Any], new: dict[str, Any]) -> Iterator[Change]:
    """Yield the changes, with those of a micro-batch as free or as fixed."""
    for change in changes:
        if change.kind != "batch":
            yield change
            continue
        section = change.key.split(".")[0]
        is_same_step = section not in MICRO_BATCH_STAGES and _step_size(old, section) == _step_size(new, section)
        is_pretraining = section == "pretrain"  # whose tokens_per_step says what a step is
        yield Change(change.key, "free" if is_same_step or is_pretraining else "fixed", change.old, change.new)


def _step_size(settings: dict[str, Any], section: str) -> Any:
    """Return the rows of one process in a step; what is not a number is returned as it is."""
    micro_batch = settings.get(f"{section}.training.per_device_train_batch_size", DEFAULT_MICRO_BATCH)
    accumulation = settings.get(f"{section}.training.gradient_accumulation_steps", DEFAULT_ACCUMULATION)
    if micro_batch == "auto":
        micro_batch = DEFAULT_MICRO_BATCH
    if accumulation == "auto":
        accumulation = DEFAULT_ACCUMULATION
    if isinstance(micro_batch, int) and isinstance(accumulation, int):
        return micro_batch * accumulation
    return micro_batch, accumulation
