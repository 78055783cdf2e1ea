"""Value alignment: the critic calibrated to the offline policy."""
