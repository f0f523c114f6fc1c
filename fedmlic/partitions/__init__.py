"""Ways to divide a data set among clients: one file each."""
