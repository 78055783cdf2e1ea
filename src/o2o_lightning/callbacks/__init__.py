"""Callbacks: evaluation, reference policy, threshold, progress, summary, checkpoints."""
