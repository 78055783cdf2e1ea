"""Checkpoints: what phases hand on, and how files reach the disk."""
