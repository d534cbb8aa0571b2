"""Annotations of untrimmed videos: files of many formats are read to one checked table."""
