"""Learning rules, one file each: options, networks, losses, the order of an update, how it acts."""
