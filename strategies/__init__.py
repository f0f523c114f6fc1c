"""The server: the round loop, who takes part, and how updates become the next model."""
