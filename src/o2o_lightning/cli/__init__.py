"""The ``o2o`` command."""
