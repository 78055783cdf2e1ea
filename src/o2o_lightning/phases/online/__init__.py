"""Constrained fine-tuning: online learning close to the best policy seen so far."""
