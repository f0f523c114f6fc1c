"""What a client does to learn: one file each."""
