"""The executables, one a stage: `python -m stages.synthesize --config configs/digits.yaml`."""
