"""A run's model in a form that other programs read, with what they need to know of it."""
