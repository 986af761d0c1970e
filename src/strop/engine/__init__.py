"""One optimizer step, and what keeps it going: rows, windows, micro-batches, gradient, evaluation, checkpoints."""
