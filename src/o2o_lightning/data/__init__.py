"""Datasets, and the DataModules that phases draw from."""
