"""Training: one loop for every stage; objectives, optimisers, schedules, memory, checkpoints, and many ranks."""
