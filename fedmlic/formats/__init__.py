"""Readers of file formats, one file each; data sets and regimes share them."""
