"""The label of tokens that the loss ignores. Modeling files that are saved with the weights write it out themselves."""

IGNORE_INDEX = -100  # torch.nn.CrossEntropyLoss's ignore_index, and so transformers' and TRL's
