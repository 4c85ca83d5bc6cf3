"""Check the ids of models and data sets on the Hub, and the right to push there, as far as the network allows."""

from pathlib import Path

import httpx2
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, RepositoryNotFoundError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import validate_repo_id

from hf_llm.core.format import one_line
from hf_llm.preflight.findings import Findings

TIMEOUT_SECONDS = 10.0


def check_repository(key: str, name: str, kind: str, findings: Findings) -> None:
    """Check that the Hub, or the local cache of it, has the repository `name`; `kind` is model or dataset."""
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        findings.add_problem(key, f"{name!r} is neither a path on this disk nor an id on the Hub: {one_line(error)}")
        return
    if is_cached(name, kind):
        return
    if constants.HF_HUB_OFFLINE:
        findings.add_problem(
            key,
            f"there is no folder {name}, and HF_HUB_OFFLINE is set while the local cache has no {kind} of that name; "
            "correct the name, or download it first (hf download)",
        )
        return

    try:
        HfApi().repo_info(name, repo_type=kind, timeout=TIMEOUT_SECONDS)
    except RepositoryNotFoundError:  # a gated repository without access is one, too
        findings.add_problem(
            key,
            f"there is no folder {name}, and no {kind} of that name on the Hub that you may read; correct the name, or "
            "log in with `hf auth login`",
        )
    except (HfHubHTTPError, httpx2.HTTPError, OSError) as error:
        findings.add_note(f"{key}: {name} could not be checked, the Hub does not answer ({one_line(error)})")


def is_cached(name: str, kind: str) -> bool:
    """Whether the local cache of the Hub holds a snapshot of a repository."""
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type=kind)
    return any(folder.glob("snapshots/*/*"))


def check_push_right(key: str, findings: Findings) -> None:
    """Check that somebody is logged in who may write to the Hub."""
    if constants.HF_HUB_OFFLINE:
        findings.add_problem(key, "HF_HUB_OFFLINE is set, so nothing can be pushed; unset it, or take push_to_hub out")
        return
    try:
        account = HfApi().whoami()
    except LocalTokenNotFoundError:
        findings.add_problem(
            key, "nobody is logged in; use `hf auth login` or set HF_TOKEN (with write access), or take push_to_hub out"
        )
        return
    except (HfHubHTTPError, httpx2.HTTPError, OSError) as error:
        findings.add_note(f"{key}: the right to push could not be checked ({one_line(error)})")
        return
    role = (account.get("auth") or {}).get("accessToken", {}).get("role")
    if role == "read":
        findings.add_problem(key, "the token may only read; make one with write access, or take push_to_hub out")
