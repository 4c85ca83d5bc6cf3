"""Find the tokenizer of a folder of token shards that a recipe names (`pretrain.tokens`).

hf_llm.tokenize_corpus puts a copy of it into the folder. For shards of an older version it is the folder `tokenizer`
beside them, where that is still the one they were made with.
"""

import json
from pathlib import Path

from hf_llm.core.errors import UserError
from hf_llm.core.manifest import file_digest

INDEX = "index.json"
TOKENIZER_COPY = "tokenizer"  # below a folder of token shards
TOKENIZER_FILE = "tokenizer.json"


def read_index(folder: Path | str) -> dict:
    """Read the index of a folder of token shards. Raises UserError where there is none, or a damaged one."""
    path = Path(folder) / INDEX
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{folder} holds no token shards (no {INDEX}); make them with python -m hf_llm.tokenize_corpus recipe.yaml"
        ) from None
    except ValueError as error:
        raise UserError(f"{path} cannot be parsed as JSON: {error}; make the shards again") from None


def find_tokenizer(folder: Path | str) -> Path | None:
    """Return the folder of the tokenizer that made the token shards of `folder`; None where it is not at hand."""
    digest = read_index(folder).get("tokenizer")
    folder = Path(folder)
    for candidate in (folder / TOKENIZER_COPY, folder.parent / "tokenizer"):
        file = candidate / TOKENIZER_FILE
        if file.is_file() and (not digest or file_digest(file) == digest):
            return candidate
    return None


def require_tokenizer(folder: Path | str) -> Path:
    """Return the folder of the tokenizer that made the token shards of `folder`. Raises UserError where it is gone."""
    tokenizer = find_tokenizer(folder)
    if tokenizer is None:
        raise UserError(
            f"pretrain.tokens: the tokenizer that made the shards of {folder} is neither in it nor beside it; name its "
            "folder in pretrain.tokenizer"
        )
    return tokenizer
