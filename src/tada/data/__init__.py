"""Data sets: tables of labeled videos, clips for training and testing, generated motion."""
