"""A decoder's shape, its weights in and out of Hugging Face folders, and what computes it; presets and accounting."""
