"""Features of untrimmed videos: made from clips, imported, kept in files."""
