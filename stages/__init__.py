"""The executables, one per stage: `python -m stages.synthesize --config configs/digits.yaml`."""
