"""Recipes of synthesis and distillation, compared at one budget (see `benchmarks.recipes.__main__`)."""
