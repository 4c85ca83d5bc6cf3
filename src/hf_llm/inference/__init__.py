"""Text from a model: completions, chat replies and filled gaps."""
