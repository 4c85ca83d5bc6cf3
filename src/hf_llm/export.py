"""Write a model as one of a stock architecture, which opens without hf_llm and without trust_remote_code.

    python -m hf_llm.export runs/quickstart/dpo --to qwen3 --output exported/quickstart

The tensors stay as they are and only the configuration is rewritten, so vLLM, SGLang, llama.cpp and Ollama run the
model as a Qwen3. The export is loaded back, and counts as done when its logits and greedy tokens are the original's.
"""

import argparse
import shutil
from pathlib import Path

import torch
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from hf_llm.errors import UserError, command
from hf_llm.model.configuration_hf_llm import HfLlmConfig
from hf_llm.model.loading import load_model, load_tokenizer

TOLERANCE = 1e-5  # of logits in float32
SHARED = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "initializer_range"),
    *("rms_norm_eps", "use_cache", "tie_word_embeddings", "rope_parameters", "attention_bias", "attention_dropout"),
    *("pad_token_id", "bos_token_id", "eos_token_id", "dtype"),
)


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a model folder or Hub id")
    parser.add_argument("--to", choices=["qwen3"], default="qwen3", help="the architecture to write")
    parser.add_argument("--output", type=Path, required=True, help="a new folder")
    arguments = parser.parse_args(argv)
    export_qwen3(arguments.model, arguments.output)
    print(f"{arguments.output}: Qwen3ForCausalLM, same logits (to {TOLERANCE}) and same greedy tokens as the original")


def export_qwen3(path: Path | str, output: Path) -> None:
    """Write the model of `path` to the new folder `output` as a Qwen3, and check the result against the original.

    Raises UserError for a model that is no hf_llm causal language model, a folder in use, or a result that differs.
    """
    if output.exists() and any(output.iterdir()):
        raise UserError(f"--output: {output} is not empty; name a new folder")
    model, tokenizer = load_model(path, dtype="auto").eval(), load_tokenizer(path)
    exported = Qwen3ForCausalLM(qwen3_config(model.config, path))
    exported.load_state_dict(model.state_dict(), assign=True)
    exported.tie_weights()
    exported.generation_config = model.generation_config
    exported.save_pretrained(output)
    tokenizer.save_pretrained(output)
    try:
        check_equal(model, Qwen3ForCausalLM.from_pretrained(output, dtype="auto").eval())
    except UserError:
        shutil.rmtree(output)
        raise


def qwen3_config(config: HfLlmConfig, path: Path | str) -> Qwen3Config:
    """The Qwen3 configuration that says the same as `config`. UserError for a model that is not ours."""
    if config.model_type != "hf_llm":
        raise UserError(
            f"{path} is a {config.model_type}, which other programs open as it is; only hf_llm models need an export"
        )
    return Qwen3Config(**{name: getattr(config, name) for name in SHARED})


@torch.no_grad()
def check_equal(model: PreTrainedModel, exported: PreTrainedModel) -> None:
    """Raise UserError unless both models give the same logits and the same greedy tokens, in float32."""
    model, exported = model.float(), exported.float()
    tokens = torch.arange(min(64, model.config.max_position_embeddings - 32))[None] * 7919 % model.config.vocab_size
    difference = (model(tokens).logits - exported(tokens).logits).abs().max().item()
    if not difference <= TOLERANCE:
        raise UserError(f"the exported model's logits differ by {difference:.2g}; the export was deleted")
    greedy = {"max_new_tokens": 16, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    mask = torch.ones_like(tokens)
    if not torch.equal(*(m.generate(tokens, attention_mask=mask, **greedy) for m in (model, exported))):
        raise UserError("the exported model generates other tokens; the export was deleted")


if __name__ == "__main__":
    main()
