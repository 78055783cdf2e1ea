"""Making datasets: rollouts, what they need to know of the policy, and the files."""
