"""The model: the files that travel with the weights, loading, layer pruning, and a summary of its parts."""
