"""Temporal action localization: detect segments (start, end, class) in untrimmed videos."""
