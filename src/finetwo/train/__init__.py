"""Floor 7: the job, the one training loop, optimizers, evaluation and listeners."""
