import pytest
from transformers import PreTrainedTokenizerFast

from hf_llm.tokenization.report import format_report, measure_tokenizer
from hf_llm.tokenization.train import TokenizerSection, train_tokenizer
from tests.made_up_texts import texts


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(texts(), TokenizerSection(vocab_size=320))


def lossy(tokenizer):
    """The same tokenizer, but that it writes everything small."""
    from tokenizers import Tokenizer, normalizers

    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.normalizer = normalizers.Lowercase()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")


def test_the_report_counts_bytes_per_token(tokenizer):
    held_out = ["river stone", "naïve <|endoftext|>"]
    report = measure_tokenizer(tokenizer, [(held_out, ["a", "b"], ["en", "en"])], 10**6)
    size = sum(len(text.encode()) for text in held_out)
    assert report["bytes"] == size and report["documents"] == 2
    assert 1 < report["bytes_per_token"] < 5
    assert report["samples"]["digits"]["2024"] == ["2", "0", "2", "4"]
    assert tokenizer.encode("<|endoftext|>") == [1]


def test_sources_and_languages_are_told_apart_and_add_up(tokenizer):
    batches = [(["river stone " * 9, "数字"], ["web", "books"], ["en", "zh"]), (["stone"], ["web"], ["en"])]
    report = measure_tokenizer(tokenizer, batches, 10**6)
    (web, books), (english, chinese) = report["by_source"], report["by_language"]
    assert (web["source"], web["documents"], web["bytes"]) == ("web", 2, 12 * 9 + 5)
    assert books["this run"] == chinese["this run"] == 1.0  # no merge knows these letters: a token per byte
    assert english["this run"] == web["this run"] > 1
    tokens = sum(row["bytes"] / row["this run"] for row in report["by_source"])
    assert report["bytes"] / tokens == pytest.approx(report["bytes_per_token"])


def test_changed_texts_are_counted_and_shown(tokenizer):
    batches = [(["River stone", "river"], ["web"] * 2, [""] * 2)]
    report = measure_tokenizer(tokenizer, batches, 10**6, {"small": lossy(tokenizer)})
    own, other = report["tokenizers"]
    assert (own["differ"], other["differ"]) == (0, 1)
    assert other["example"] == "'River stone' became 'river stone'"
    table = format_report(report)
    assert "small" in table and "source web: this run" in table and "(none)" in table


def test_tokens_that_no_text_needs_are_counted(tokenizer):
    report = measure_tokenizer(tokenizer, [(["zz"], [""], [""])], 10**6)
    assert report["tokenizers"][0]["unused_share"] == 1 - 1 / 320


def test_no_more_is_read_than_the_limit(tokenizer):
    def batches():
        for number in range(100):
            assert number < 3
            yield ["x" * 400], [""], [""]

    assert measure_tokenizer(tokenizer, batches(), 1000)["bytes"] == 1200
