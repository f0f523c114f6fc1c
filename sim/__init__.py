"""The world around them: engines, faults, recipes and the command."""
