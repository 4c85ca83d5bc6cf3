"""What `dask.dataframe` reads of a corpus, and a corpus of what it wrote."""

import json

import dask.dataframe
import pytest

from hf_llm.data.corpus.config import Source
from hf_llm.data.corpus.sources import list_read_tasks
from hf_llm.data.files.read_errors import ReadErrors
from hf_llm.data.files.tabular import read_rows


@pytest.fixture(scope="module")
def corpus(tiny_life):
    return tiny_life / "runs/tiny/corpus"


def test_a_corpus_opens_as_a_data_frame(corpus):
    frame = dask.dataframe.read_parquet(corpus / "data/train-*.parquet")
    ledger = json.loads((corpus / "ledger.json").read_text())
    assert len(frame) == ledger["splits"]["train"]["documents"]
    assert (
        frame["text"].map(lambda text: len(text.encode()), meta=("text", int)).sum().compute()
        == ledger["splits"]["train"]["bytes"]
    )


def test_what_a_data_frame_wrote_is_a_source(corpus, tmp_path):
    frame = dask.dataframe.read_parquet(corpus / "data/train-*.parquet").repartition(npartitions=3)
    frame.to_parquet(tmp_path / "frame", write_metadata_file=False)
    tasks = list_read_tasks([Source(path=str(tmp_path / "frame"), license="unknown")])
    files = [name for task in tasks for _, name in task.files]
    assert len(files) == 3
    texts = sorted(row["text"] for name in files for _, row in read_rows(tmp_path / "frame" / name, ReadErrors()))
    assert texts == sorted(frame["text"].compute())
