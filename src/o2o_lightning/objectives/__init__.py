"""The mathematics: pure functions on tensors, one file a topic, each with its equation number."""
