"""The model: configuration and modeling files that travel with the weights, loading, and a printout of its parts."""
