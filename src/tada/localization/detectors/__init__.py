"""Detectors on features: ActionFormer and BMN, and the segments that they find."""
