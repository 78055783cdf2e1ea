"""Policy re-evaluation: a fresh, optimistic critic of the offline policy."""
