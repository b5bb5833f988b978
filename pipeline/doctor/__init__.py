"""Checks of a run before it: each is independent, and says in one line what is right or how to mend it."""
