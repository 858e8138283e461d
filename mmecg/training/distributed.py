"""Several processes (``torchrun``): set up, and gather tensors with gradients so that every pair is contrasted."""

from __future__ import annotations

import os

import torch
from torch import Tensor, distributed
from torch.distributed.nn.functional import all_gather


def initialise() -> tuple[int, int, torch.device]:
    """Join the process group that ``torchrun`` describes; return rank, world size and device.

    The two environment variables are torchrun's own interface; without them there is one process.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    cuda = torch.cuda.is_available()
    if world == 1:
        return 0, 1, torch.device("cuda" if cuda else "cpu")
    distributed.init_process_group("nccl" if cuda else "gloo")
    if not cuda:
        return distributed.get_rank(), world, torch.device("cpu")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    return distributed.get_rank(), world, device


def gather(tensor: Tensor) -> Tensor:
    """Return the tensors of all processes, concatenated along the first axis, differentiably.

    Every process computes the same loss on the same matrix; the backward pass sums the gradients that a part receives
    in all of them, and :func:`average_gradients` divides by their number, which leaves the gradient of one process
    with the whole batch.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return tensor
    if tensor.requires_grad:
        return torch.cat(all_gather(tensor.contiguous()))  # type: ignore[no-untyped-call]
    parts = [torch.empty_like(tensor) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def average_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """Average the gradients over processes."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        distributed.all_reduce(parameter.grad)
        parameter.grad /= distributed.get_world_size()
