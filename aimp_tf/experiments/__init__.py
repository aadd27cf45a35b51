"""Named data, architectures and experiments, for the tools and configs. The package itself does not need them."""
