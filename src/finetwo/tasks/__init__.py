"""Floor 4: the tasks as declarations: which columns, how a row is written, what is learned."""
