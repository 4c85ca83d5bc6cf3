"""Recipes by name, from a checkout as from a wheel."""

import pytest

from hf_llm.core import shipped
from hf_llm.core.errors import UserError
from hf_llm.core.shipped import describe_recipe, find_recipe, shipped_recipes
from tests.tiny_recipe import ROOT


def test_a_name_without_a_path_is_a_shipped_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_recipe("quickstart") == ROOT / "recipes/quickstart.yaml"
    assert find_recipe("bert") == ROOT / "recipes/examples/bert.yaml"


@pytest.mark.parametrize("file", ["quickstart", "quickstart.yaml"])
def test_a_file_of_that_name_in_the_folder_wins(tmp_path, monkeypatch, file):
    monkeypatch.chdir(tmp_path)
    (tmp_path / file).write_text("name: mine\n")
    assert find_recipe("quickstart").read_text() == "name: mine\n"


def test_a_folder_of_that_name_does_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").mkdir()
    assert find_recipe("quickstart") == ROOT / "recipes/quickstart.yaml"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("quickstrat", "none is shipped by the name 'quickstrat'; did you mean quickstart?"),
        ("zzzz", "`hf-llm recipe --list` prints"),
        ("recipes/quickstrat.yaml", "no recipe at recipes/quickstrat.yaml; did you mean recipes/quickstart.yaml?"),
        ("quickstart.yaml", "no recipe at quickstart.yaml"),
    ],
)
def test_what_is_not_there_is_an_error_with_the_nearest_name(monkeypatch, name, words):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError) as error:
        find_recipe(name)
    assert words in str(error.value)


def test_a_wheel_looks_beside_the_package_first(tmp_path, monkeypatch):
    recipes = tmp_path / "hf_llm/shipped/recipes"
    recipes.mkdir(parents=True)
    (recipes / "only.yaml").write_text("# command\n# One of its own.\nname: only\n")
    monkeypatch.setattr(shipped, "files", lambda package: tmp_path / package)
    assert list(shipped_recipes()) == ["only"]
    assert describe_recipe(shipped_recipes()["only"]) == "One of its own."


def test_every_shipped_recipe_says_what_it_makes_and_no_two_share_a_name():
    recipes = shipped_recipes()
    assert len(recipes) == len(list((ROOT / "recipes").rglob("*.yaml")))
    assert all(describe_recipe(path) for path in recipes.values())
