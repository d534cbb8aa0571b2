"""What training needs, whatever is learned: the trainer and its callbacks, saved states, the folder of a run."""
