"""Environments: making, evaluating, interacting."""
