"""Make a copy of a model folder that can be shown to anyone: what is in files of text without paths of this machine.

The weights are linked, not copied. The entries of the manifest for files that differ are those of the copy.
"""

import json
import re
import tempfile
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from hf_llm.core.manifest import MANIFEST_FILE, digest_of, file_digest, read_manifest, write_json
from hf_llm.core.secrets import hide_secrets

ADAPTER_CONFIG = "adapter_config.json"
MAX_TEXT_BYTES = 20_000_000  # larger files of JSON are a tokenizer's or an index of weights, which hold no paths
KEPT_AS_THEY_ARE = ("tokenizer.json", "*.index.json")

# A path from the root, from the home folder or from a drive, within a text; not the path of a URL.
ABSOLUTE_PATH = re.compile(r"(?<![\w:/.~<-])(?:~|[A-Za-z]:\\|/(?=[\w.]+/))[^\s\"'`<>|,;()\[\]]*[^\s\"'`<>|,;()\[\].:]")


def make_public_copy(folder: Path, ignored: list[str]) -> tempfile.TemporaryDirectory:
    """Copy a model folder to a temporary one, without files that match a pattern in `ignored`.

    The caller deletes it by `cleanup()`.
    """
    folder = Path(folder)
    copy = tempfile.TemporaryDirectory(prefix="hf_llm_upload_")
    public_names = _name_bases(folder)
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or any(fnmatch(name, pattern) for pattern in ignored):
            continue
        target = Path(copy.name) / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if not _write_public_text(path, target, public_names):
            target.symlink_to(path.resolve())
    _correct_manifest(folder, Path(copy.name))
    return copy


def hide_paths(value: Any, public_names: dict[str, str] | None = None) -> Any:
    """Return `value` (nested plain data) with every path of this machine reduced to its last part.

    A path that is a key of `public_names` is replaced by its value.
    """
    names = public_names or {}
    if isinstance(value, dict):
        return {_hide_in_string(key, names): hide_paths(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [hide_paths(item, names) for item in value]
    return _hide_in_string(value, names) if isinstance(value, str) else value


def _hide_in_string(text: str, public_names: dict[str, str]) -> str:
    for path, name in public_names.items():
        if text == path:
            return name
    is_one_path = "/" in text and "\n" not in text and len(text) < 4096 and not re.match(r"\w[\w+.-]*://", text)
    if is_one_path and _exists(text):
        return Path(text).name
    return ABSOLUTE_PATH.sub(lambda match: re.split(r"[/\\]", match[0].rstrip("/\\"))[-1], text)


def _exists(path: str) -> bool:
    try:
        return Path(path).expanduser().exists()
    except (OSError, RuntimeError):  # a name that is too long, or a home folder that is not known
        return False


def _name_bases(folder: Path) -> dict[str, str]:
    """Name the models on this machine that the adapters in a folder belong to, as others can know them.

    That is the model's id where it was pushed to the Hub, otherwise a name that is not an id of the Hub.
    """
    names = {}
    for path in folder.rglob(ADAPTER_CONFIG):
        base = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path")
        if base and Path(base).exists():
            arguments = (read_manifest(Path(base)) or {}).get("facts", {}).get("arguments", {})
            pushed = arguments.get("push_to_hub") and arguments.get("hub_model_id")
            names[base] = pushed or f"{Path(base).resolve().parent.name}-{Path(base).resolve().name}"
    return names


def _write_public_text(path: Path, target: Path, public_names: dict[str, str]) -> bool:
    """Write what a file of JSON or Markdown says without paths; False where it says no more than the original."""
    is_text = path.suffix in (".json", ".jsonl", ".md") and path.stat().st_size <= MAX_TEXT_BYTES
    if not is_text or any(fnmatch(path.name, pattern) for pattern in KEPT_AS_THEY_ARE):
        return False

    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        value = json.loads(text)
        public = hide_secrets(hide_paths(value, public_names))
        if public == value:
            return False
        write_json(target, public)
        return True

    public_text = text
    for base, name in public_names.items():
        public_text = public_text.replace(base, name)
    public_text = hide_secrets(ABSOLUTE_PATH.sub(lambda match: Path(match[0]).name, public_text))
    public_text = public_text.replace(str(Path.cwd()), ".").replace(str(Path.home()), "~")
    if public_text == text:
        return False
    target.write_text(public_text, encoding="utf-8")
    return True


def _correct_manifest(folder: Path, copy: Path) -> None:
    """Write the sizes and digests of the files that differ from the folder's into the copy's manifest."""
    manifest = read_manifest(copy)
    if manifest is None or "files" not in manifest:
        return
    is_changed = False
    for name in manifest["files"]:
        path = copy / name
        if path.is_file() and not path.is_symlink():
            manifest["files"][name] = [path.stat().st_size, file_digest(path)]
            is_changed = True
    if is_changed:
        manifest["digest"] = digest_of(manifest["files"])
        (copy / MANIFEST_FILE).unlink()
        write_json(copy / MANIFEST_FILE, manifest)
