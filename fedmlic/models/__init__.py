"""Backbones: one file each."""
