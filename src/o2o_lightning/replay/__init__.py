"""What is learned from: tables of transitions, the buffers over them, and the environment that fills them."""
