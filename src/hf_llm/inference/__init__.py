"""Text from a model: completions and chat replies."""
