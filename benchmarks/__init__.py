"""Measurements; each writes JSON with the machine, the versions and the commit beside the figures."""
