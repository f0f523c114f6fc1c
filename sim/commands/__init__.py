"""What the commands of ``fedmlic`` share, and commands with a file of their own."""
