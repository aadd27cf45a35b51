"""Pruned tensors at the cost of their entropy, as bytes that are read back. NumPy and an entropy coder only."""
