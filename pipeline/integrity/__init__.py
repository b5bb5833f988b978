"""Which files of a run are whole, damaged, or not of it."""
