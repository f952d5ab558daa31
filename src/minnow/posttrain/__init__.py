"""After training: pairs and their jury, the gate that chooses checkpoints, a policy's rollouts, merging, data of answers."""
