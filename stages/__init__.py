"""The commands, one in each module: `dreamdistill synthesize` or, without an install, `python -m stages synthesize`."""
