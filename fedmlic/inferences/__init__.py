"""Inferences: how a trained network is asked, whatever its method; one file each."""
