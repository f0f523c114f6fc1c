"""Readers of file formats that several data sets share: one file each."""
