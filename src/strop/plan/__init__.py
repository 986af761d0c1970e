"""Before a run: which method fits the rows and what is at hand. Reads data and configs; no weights, no torch."""
