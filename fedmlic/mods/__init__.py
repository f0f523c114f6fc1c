"""Mods: what is added to a client's turn, whatever its method; one file each."""
