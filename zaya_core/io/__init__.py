"""Weights and checkpoints on disk. It never builds a module."""
