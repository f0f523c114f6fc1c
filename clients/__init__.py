"""The device: what a client does with a request."""
