"""What `tools/benchmark.py` measures, a module for each of its commands. The package itself does not need them."""
