"""Measurements. Each writes JSON with its figures, the machine, the versions and the commit."""
