"""Temporal action localization: when, in an untrimmed video, does what happen."""
