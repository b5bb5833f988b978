"""Seeds and generators, each derived from the seed of the run, a purpose and an index."""

import hashlib

import torch


def derive_seed(seed: int, purpose: str, index: int = 0) -> int:
    """A 63-bit seed for one use of randomness; different purposes and indices are independent."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def make_generator(seed: int, purpose: str, index: int = 0) -> torch.Generator:
    """A CPU generator for (run seed, purpose, index): it draws the same numbers on every device."""
    return torch.Generator().manual_seed(derive_seed(seed, purpose, index))
