"""Floor 2: text to token ids and back, and prompt templates; no torch here."""
