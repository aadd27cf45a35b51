"""Which weights stay, and how many of them at which time. NumPy only."""
