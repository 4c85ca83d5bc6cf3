"""The shipped keys of the libraries' settings classes: they are what the classes say, or are not used."""

import json
import re
import subprocess
import sys

import pytest

from hf_llm.core.recipe import _build_scalar
from hf_llm.core.settings import library_settings
from hf_llm.core.settings.dataclass_fields import field_types
from hf_llm.core.settings.library_settings import (
    LIBRARIES,
    SHIPPED_FILE,
    decode_type,
    encode_type,
    import_class,
    installed_versions,
    load_class,
    read_model_types,
    read_shipped,
)
from tests.shipped_settings import list_class_names
from tests.tiny_recipe import ROOT

VALUES = [None, True, 0, 3, 1.5, -1.0, "", "steps", "auto-ish", "3", [], [1], ["a"], {}, {"a": 1}, {"a": "b"}]


def pinned_versions() -> dict[str, str]:
    """The versions of the libraries in constraints.txt."""
    pins = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE))
    return {library: pins[library] for library in LIBRARIES}


has_pins = pytest.mark.skipif(installed_versions() != pinned_versions(), reason="other versions are installed")


@pytest.fixture
def changed_file(tmp_path, monkeypatch):
    """Puts another file in the place of the shipped one: `changed_file(text)`."""

    def clear():
        read_shipped.cache_clear()
        library_settings._read_shipped_file.cache_clear()

    def put(text: str) -> None:
        path = tmp_path / "library_settings.json"
        path.write_text(text, encoding="utf-8")
        monkeypatch.setattr(library_settings, "SHIPPED_FILE", path)
        clear()

    yield put
    monkeypatch.undo()
    clear()


def test_the_shipped_file_is_of_the_pinned_versions():
    assert json.loads(SHIPPED_FILE.read_text(encoding="utf-8"))["versions"] == pinned_versions(), "run `make reference`"


@has_pins
def test_the_shipped_file_says_what_the_classes_say():
    # In a process of its own: Python keeps the unions that it has seen, and gives an equal one back in another order.
    command = [sys.executable, "-m", "tests.shipped_settings"]
    live = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, encoding="utf-8").stdout
    assert SHIPPED_FILE.read_text(encoding="utf-8") == live, "run `make reference`"


@has_pins
def test_every_class_of_a_recipe_is_shipped():
    assert set(list_class_names()) == set(read_shipped())
    assert "llama" in read_model_types() and "hf_llm" in read_model_types()


@has_pins
@pytest.mark.parametrize("name", list_class_names())
def test_a_value_is_taken_or_refused_in_the_same_words_as_by_the_class_itself(name):
    cls = import_class(name)
    aliases = getattr(cls, "attribute_map", {})
    annotations = field_types(cls)
    shipped = read_shipped()[name]
    compared = set()
    for key, encoded in shipped.keys.items():
        own = annotations.get(aliases.get(key, key))
        if own is None or encoded is None or str(own) in compared:
            continue
        compared.add(str(own))
        for value in VALUES:
            problems, own_problems = [], []
            built = _build_scalar(shipped.find_annotation(key), value, key, problems)
            own_built = _build_scalar(own, value, key, own_problems)
            assert (built, problems) == (own_built, own_problems), (key, value)
    assert compared


@has_pins
def test_a_key_whose_type_is_the_librarys_own_is_checked_by_the_class():
    shipped = load_class("peft.LoraConfig")
    assert shipped.keys["eva_config"] is None
    assert shipped.find_annotation("eva_config") == field_types(import_class("peft.LoraConfig"))["eva_config"]


@pytest.mark.parametrize("change", ["version", "source file", "damage"])
def test_what_was_made_from_something_else_is_not_used(change, changed_file):
    """The keys are the wrong ones here: used, they would be seen."""
    text = SHIPPED_FILE.read_text(encoding="utf-8").replace('"lora_alpha"', '"lora_alfa"')
    shipped = json.loads(text)
    if change == "version":
        shipped["versions"]["peft"] += ".dev0"
    elif change == "source file":
        shipped["classes"]["peft.LoraConfig"]["files"]["peft.tuners.lora.config"] = "0" * 16
    changed_file(json.dumps(shipped) if change != "damage" else text[:-100])

    keys = load_class("peft.LoraConfig").keys
    assert "lora_alpha" in keys and "lora_alfa" not in keys
    is_used = "trl.SFTConfig" in read_shipped()
    assert is_used == (change == "source file" and installed_versions() == pinned_versions())


def test_types_are_written_and_read_back():
    for annotation in (
        int, str | None, list[str] | str | None, dict[str, int], tuple[int, ...], list[list[float]] | bool, dict, None,
    ):  # fmt: skip
        encoded = encode_type(annotation)
        assert json.loads(json.dumps(encoded)) == encoded
        decoded = decode_type(encoded)
        assert decoded == (type(None) if annotation is None else annotation)
    assert encode_type(re.Pattern) is None
    assert encode_type(list[re.Pattern | None]) is None
