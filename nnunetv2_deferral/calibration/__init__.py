"""Probabilities that mean what they say: maps, how they are fitted on validation cases, what a model keeps of that."""
