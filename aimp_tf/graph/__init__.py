"""What depends on what in a model: its calls, a rule for each kind of layer, and what is prunable."""
