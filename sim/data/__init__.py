"""Prepare and check data sets before a run."""
