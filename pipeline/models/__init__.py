"""Networks with their normalization and weights."""
