"""Networks: no Lightning, no files, no environments."""
