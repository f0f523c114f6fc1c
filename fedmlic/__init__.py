"""The language of the experiment: nouns and pure functions that everybody shares."""
