"""Compare runs: who is better, by how much, and whether the seeds are enough to tell."""
