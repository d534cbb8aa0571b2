"""Action recognition: which actions happen in a video."""
