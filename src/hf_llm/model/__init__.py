"""The model: the files that travel with the weights, loading, layer pruning, and a summary of its parts.

Importing this makes `model_type: hf_llm` known to transformers' Auto classes.
"""

import hf_llm.model.auto_classes  # noqa: F401 - registers the classes
