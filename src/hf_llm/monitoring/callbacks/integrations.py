"""Where Trainer's logs go: TensorBoard by default, Weights & Biases when asked, never a question at the keyboard."""

import netrc
import os
from pathlib import Path
from urllib.parse import urlsplit

from hf_llm.core.console import print_main


def reporters(requested: str | list[str] | None) -> list[str]:
    """The `report_to` of TrainingArguments for what a recipe asks: TensorBoard when it says nothing.

    Where wandb is wanted and no login is at hand, it runs offline (`WANDB_MODE`), and a line says so.
    """
    if requested is None:
        return ["tensorboard"]
    names = [requested] if isinstance(requested, str) else list(requested)
    if {"wandb", "all"} & set(names) and not wandb_login_known():
        if os.environ.get("WANDB_MODE") not in ("offline", "disabled"):
            os.environ["WANDB_MODE"] = "offline"
            print_main(
                "wandb: no login found, so this run is kept offline; `wandb login` and `wandb sync` send it later"
            )
    return names


def wandb_login_known() -> bool:
    """Whether wandb finds a key without asking: WANDB_API_KEY, an identity token, or a netrc entry for its server."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    named = [Path(os.environ["NETRC"])] if "NETRC" in os.environ else [Path("~/.netrc"), Path("~/_netrc")]
    for path in (path.expanduser() for path in named):
        try:
            if path.is_file() and netrc.netrc(path).authenticators(host):
                return True
        except netrc.NetrcParseError as error:
            print_main(f"wandb: {path} is not readable as netrc ({error}); counting it as no login")
    return False
