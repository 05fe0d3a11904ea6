"""Floor 8: the command line, and what a person sees in the terminal."""
