"""Floor 3: records, sequences, packing, batches and the token cache; it knows no network (numpy only)."""
