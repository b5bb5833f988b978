"""Metrics of networks on real images, and the report about a run."""
