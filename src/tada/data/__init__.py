"""Data sets: tables of labelled videos, clips for training and testing, generated motion."""
