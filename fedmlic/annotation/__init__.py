"""What annotation regimes share: random draws, objects of an image, votes, columns by label name."""
