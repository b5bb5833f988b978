"""Sets whose images must not be mirrored."""

import warnings
from collections.abc import Mapping

# Sets in which a mirrored image has another class or none.
NOT_MIRRORABLE = ("sklearn:digits", "torchvision:MNIST")


def warn_of_mirrors(source: str, flips: Mapping[str, bool]) -> None:
    """Warn of every config key in `flips` that mirrors images of such a set."""
    for key, flip in flips.items():
        if flip and source in NOT_MIRRORABLE:
            warnings.warn(f"{key}: true mirrors images of {source}, which changes what they show", stacklevel=3)
