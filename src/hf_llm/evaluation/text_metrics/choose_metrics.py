"""The metrics that a recipe names, as objects."""

from collections.abc import Sequence

from hf_llm.core.extras import require_extras
from hf_llm.evaluation.text_metrics.metric_names import ROUGE_NAMES
from hf_llm.evaluation.text_metrics.text_metric import TextMetric


def make_metrics(names: Sequence[str], bleu_tokenizer: str = "13a") -> list[TextMetric]:
    """Return the metrics that give these scores, each metric once. Raises UserError where a package is missing."""
    require_extras("eval")

    from hf_llm.evaluation.text_metrics.bleu import Bleu
    from hf_llm.evaluation.text_metrics.chrf import Chrf
    from hf_llm.evaluation.text_metrics.rouge import Rouge

    metrics: list[TextMetric] = []
    if "bleu" in names:
        metrics.append(Bleu(bleu_tokenizer))
    variants = [name for name in ROUGE_NAMES if name in names]
    if variants:
        metrics.append(Rouge(variants))
    if "chrf" in names:
        metrics.append(Chrf())
    return metrics
