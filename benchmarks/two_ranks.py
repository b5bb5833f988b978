"""Whether two ranks on one CUDA device can reduce over NCCL; torchrun runs it in two processes (see gpu_plan.md)."""

import os

import torch
import torch.distributed as dist


def main() -> None:
    """Sum a tensor over both ranks on device 0; print the sum, or why NCCL refuses."""
    torch.cuda.set_device(0)
    dist.init_process_group("nccl")
    try:
        total = torch.full((1,), float(os.environ["RANK"]) + 1, device="cuda:0")
        dist.all_reduce(total)
        print(f"rank {os.environ['RANK']}: the sum is {total.item():.0f}, expected 3")
    except dist.DistBackendError as error:
        print(f"rank {os.environ['RANK']}: NCCL refuses: {str(error).splitlines()[0]}")
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
