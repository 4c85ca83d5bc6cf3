"""Build your own LLM on the Hugging Face stack: one recipe, from raw text to a chat model."""

__version__ = "0.2.0"
