"""Phases as LightningModules: where a method's batches come from, when it ends, what it hands on."""
