"""Annotations of untrimmed videos: every form that is read, as one checked table."""
