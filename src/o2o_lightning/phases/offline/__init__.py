"""Offline phase: one file an algorithm."""
