"""From text to batches: `corpora` reads, `prepare` makes token files, `sampler` says what a step sees."""
