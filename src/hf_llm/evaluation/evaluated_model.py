"""A model under evaluation: loaded when a benchmark first needs it, with what it was trained on."""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from hf_llm.core.errors import UserError
from hf_llm.core.format import one_line
from hf_llm.core.manifest import current_digest, read_manifest

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


class EvaluatedModel:
    """One model of an evaluation, in one of `world_size` processes.

    `path` is its folder or Hub id, `name` what results call it.
    """

    def __init__(self, name: str, path: Path | str, rank: int = 0, world_size: int = 1):
        self.name = name
        self.path = path
        self.rank = rank
        self.world_size = world_size

    @cached_property
    def identity(self) -> str:
        """The digest of its folder, or its Hub id: with another one nothing that was scored before counts."""
        return current_digest(Path(self.path)) or str(self.path)

    @cached_property
    def model(self) -> "PreTrainedModel":
        """The model on the best device of this process, in evaluation mode."""
        import torch

        from hf_llm.model.load import load_model

        device = torch.device("cpu")
        if torch.accelerator.is_available():
            kind = torch.accelerator.current_accelerator()
            assert kind is not None
            device = torch.device(kind.type, self.rank % torch.accelerator.device_count())
        return load_model(self.path, objective=None).to(device).eval()

    @cached_property
    def config(self) -> "PreTrainedConfig":
        """Its configuration, without its weights."""
        from transformers import AutoConfig

        import hf_llm.model  # noqa: F401  (makes our class known to transformers)
        from hf_llm.model.adapters import is_adapter, read_adapter_base

        path = read_adapter_base(self.path) if is_adapter(self.path) else self.path
        try:
            return AutoConfig.from_pretrained(path, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: no model to load: {one_line(error)}") from error

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """Its own tokenizer."""
        from hf_llm.model.load import load_tokenizer

        return load_tokenizer(self.path)

    @cached_property
    def is_chat(self) -> bool:
        """Whether it is trained to chat. Our base models carry a chat template too, so their manifest decides."""
        manifest = read_manifest(Path(self.path))
        return manifest["folder"] != "base" if manifest else self.tokenizer.chat_template is not None

    @cached_property
    def context(self) -> int:
        """How many tokens it reads at most."""
        from hf_llm.model.load import context_length

        return context_length(self.config, self.tokenizer)
