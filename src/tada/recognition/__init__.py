"""Action recognition: what happens in a video."""
