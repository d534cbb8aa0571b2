"""Features of untrimmed videos: extraction, import, files."""
