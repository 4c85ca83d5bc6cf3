"""Choose where Trainer's logs go: TensorBoard by default, Weights & Biases on request, never with a question at the
keyboard."""

import netrc
import os
from pathlib import Path
from urllib.parse import urlsplit

from hf_llm.core.console import print_main


def choose_reporters(requested: str | list[str] | None) -> list[str]:
    """Choose the `report_to` of TrainingArguments: what a recipe requests, by default TensorBoard.

    Where wandb is requested and no login is known, it runs offline (`WANDB_MODE`), and a line says so.
    """
    if requested is None:
        return ["tensorboard"]

    names = [requested] if isinstance(requested, str) else list(requested)
    wants_wandb = "wandb" in names or "all" in names
    if wants_wandb and not is_wandb_login_known() and os.environ.get("WANDB_MODE") not in ("offline", "disabled"):
        os.environ["WANDB_MODE"] = "offline"
        print_main("wandb: no login found, so this run is kept offline; `wandb login` and `wandb sync` send it later")
    return names


def is_wandb_login_known() -> bool:
    """Whether wandb finds a key without asking: WANDB_API_KEY, an identity token, or a netrc entry for its server."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True

    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    if "NETRC" in os.environ:
        candidates = [Path(os.environ["NETRC"])]
    else:
        candidates = [Path("~/.netrc"), Path("~/_netrc")]
    for candidate in candidates:
        path = candidate.expanduser()
        try:
            if path.is_file() and netrc.netrc(path).authenticators(host):
                return True
        except netrc.NetrcParseError as error:
            print_main(f"wandb: cannot parse {path} as netrc ({error}); assuming that it holds no login")
    return False
