"""Floor 3: the network, its linears and adapters, how queries see keys, and the loss; it knows no files and no data."""
