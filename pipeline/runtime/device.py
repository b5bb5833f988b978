"""Transfers to a device, synchronization with it, and whether its memory is full."""

import torch
from torch import Tensor

# On the CPU, PyTorch's allocator names itself; oneDNN gives no reason, which is memory for its code or its buffers. The
# third is of a tensor with more bytes than 64 bits count; the last is Python's, which has no memory for a stack.
OUT_OF_MEMORY_TEXTS = (
    "DefaultCPUAllocator",
    "could not create a primitive",
    "Storage size calculation overflowed",
    "can't start new thread",
)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on `device`, without making the host wait for it."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the machine, had too little memory. PyTorch raises a plain RuntimeError on the CPU."""
    is_named = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return is_named or any(text in str(error) for text in OUT_OF_MEMORY_TEXTS)


def synchronize(device: torch.device) -> None:
    """Wait until the device is idle."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
