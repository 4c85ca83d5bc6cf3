"""A missing extra is an error that names the line to type."""

import pytest

from hf_llm.core import extras
from hf_llm.core.errors import UserError
from hf_llm.core.extras import missing_packages, require_extras

REQUIRES = ["torch>=2", 'datatrove>=0.10; extra == "corpus"', 'ftfy; extra == "corpus"', 'pypdfium2; extra == "pdf"']


@pytest.fixture
def only_torch(monkeypatch):
    """An environment with the core and nothing else."""
    monkeypatch.setattr(extras.metadata, "requires", lambda name: REQUIRES)
    monkeypatch.setattr(extras, "is_installed", lambda package: package == "torch")
    missing_packages.cache_clear()
    yield
    missing_packages.cache_clear()


def test_all_that_is_missing_is_named_at_once_with_the_line_that_installs_it(only_torch):
    with pytest.raises(UserError) as error:
        require_extras("corpus", "pdf")
    assert "datatrove, ftfy, pypdfium2" in str(error.value)
    assert "pip install 'hf-llm[corpus,pdf]'" in str(error.value)


def test_an_extra_asks_for_its_own_packages_only(only_torch):
    assert missing_packages("pdf") == ["pypdfium2"]


def test_what_is_installed_passes():
    require_extras("corpus", "web")
