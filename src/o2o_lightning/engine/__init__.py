"""How an update is run."""
