"""Read the Parquet files of a finished corpus. Needs none of the packages that make one."""

from collections.abc import Iterator
from pathlib import Path

from hf_llm.core.atomic_io import ROW_GROUP


def list_corpus_files(folder: Path, split: str) -> list[Path]:
    """List the Parquet files of one split of a corpus, in order."""
    return sorted((folder / "data").glob(f"{split}-*.parquet"))


def read_corpus_texts(folder: Path, split: str) -> Iterator[str]:
    """Yield the texts of one split of a corpus, in order."""
    import pyarrow.parquet

    for path in list_corpus_files(folder, split):
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=ROW_GROUP, columns=["text"]):
                yield from batch["text"].to_pylist()
