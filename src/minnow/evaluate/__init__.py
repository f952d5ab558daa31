"""What a model's answers are worth: task scores, loop rates, bits per byte, and what is kept of a measurement."""
