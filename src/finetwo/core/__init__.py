"""Floor 1: errors, configuration, console output and safe files; standard library only."""
