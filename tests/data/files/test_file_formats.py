from importlib.util import find_spec
from typing import get_args

from hf_llm.data.corpus.reader_step import CUT_FORMATS, READER_MODULES
from hf_llm.data.files.file_formats import FORMATS, NAMED_FORMATS, Format


def test_every_format_has_suffixes_and_a_reader():
    formats = set(get_args(Format))
    assert formats == set(FORMATS) | set(NAMED_FORMATS)
    assert set(CUT_FORMATS) <= formats
    for name in formats:
        assert find_spec(f"hf_llm.data.corpus.readers.{READER_MODULES.get(name, name)}"), name
