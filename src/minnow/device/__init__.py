"""Export to GGUF, check the file against the checkpoint, measure and run it with llama.cpp.

Nothing is imported here: the llama.cpp worker is a process of this package, and its memory is measured.
"""
