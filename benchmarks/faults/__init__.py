"""Faults that a run must survive, and damage that it must name: `python -m benchmarks.faults CAMPAIGN`."""
