"""Choose where Trainer's logs go: TensorBoard by default, Weights & Biases on request, never with a question at the
keyboard. A resumed training continues its run."""

import json
import netrc
import os
import secrets
from pathlib import Path
from urllib.parse import urlsplit

from transformers import TrainingArguments

from hf_llm.core.console import is_main_process, print_main
from hf_llm.core.jsonl import LOGS
from hf_llm.core.manifest import write_json

WANDB_RUN_FILE = "wandb_run.json"  # in the folder of logs: which run of wandb a training is
OWN_RUN_ID = "HF_LLM_WANDB_RUN_ID"  # set beside WANDB_RUN_ID where we have chosen that, so that the next training may


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


def set_wandb_run(folder: Path, arguments: TrainingArguments) -> None:
    """Let wandb continue the run of an earlier start of the training in `folder`, or remember the id of a new one.

    Call this before the training begins. Ids that the environment gives (WANDB_RUN_ID, WANDB_RESUME) win.
    """
    if "wandb" not in arguments.report_to or not is_main_process():
        return
    if "WANDB_RUN_ID" in os.environ and os.environ["WANDB_RUN_ID"] != os.environ.get(OWN_RUN_ID):
        return

    path = folder / LOGS / WANDB_RUN_FILE
    if path.exists():
        run_id = json.loads(path.read_text(encoding="utf-8"))["id"]
        print_main(f"wandb: continuing run {run_id}")
    else:
        run_id = secrets.token_hex(4)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"id": run_id})
    os.environ["WANDB_RUN_ID"] = run_id
    os.environ[OWN_RUN_ID] = run_id
    os.environ.setdefault("WANDB_RESUME", "allow")


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
