"""Tables and curves from run directories."""
