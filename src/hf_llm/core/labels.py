"""The label that a loss leaves out. The files that travel with a model's weights write it out themselves."""

IGNORE_INDEX = -100  # torch.nn.CrossEntropyLoss's ignore_index, and so transformers' and TRL's
