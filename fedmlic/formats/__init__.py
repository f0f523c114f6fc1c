"""File formats that data sets come in: one file each."""
