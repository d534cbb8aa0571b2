"""Training of either task: the trainer and its callbacks, checkpoints, the folder of a run."""
