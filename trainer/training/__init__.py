"""Parts of the training loop: optimizer, averaging, early stopping and resuming, warm start."""
