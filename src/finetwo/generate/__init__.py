"""Floor 6: sampling, the engine that answers many prompts at once, and the user's `Model`."""
