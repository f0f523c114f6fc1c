"""The world around them: engines, reports, preparation of data, recipes and the command."""
