"""Ways in which labels are incomplete: one file each."""
