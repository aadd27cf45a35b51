"""A run: rounds, the data and the callbacks of the user that go through them."""
