"""The paper: re-evaluation, alignment and constrained fine-tuning, one file an algorithm."""
