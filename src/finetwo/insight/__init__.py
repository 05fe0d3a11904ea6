"""Floor 8: figures and proofs, taken of models and runs from outside."""
