"""Videos: reading and writing files, choosing frames, preparing clips."""
