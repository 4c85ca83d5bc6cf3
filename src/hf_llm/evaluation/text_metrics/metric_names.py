"""The scores of texts that a recipe may name."""

ROUGE_NAMES = ("rouge1", "rouge2", "rougeL", "rougeLsum")  # from 0 to 1
METRIC_NAMES = ("bleu", "chrf", *ROUGE_NAMES)  # the first two from 0 to 100
