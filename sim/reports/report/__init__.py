"""One page that shows runs and studies to a person who has not seen them: ``fedmlic report``."""
