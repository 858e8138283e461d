"""Checkpoints at the end of an epoch: safetensors and JSON, never pickle; written aside, then renamed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mmecg.errors import BundleError

FILE = "checkpoint.safetensors"


def save_checkpoint(
    folder: Path,
    *,
    objective: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
) -> None:
    """Write everything that the next epoch needs; random numbers need no state, each epoch has its own seed.

    Parameters
    ----------
    folder : Path
    objective, average : Module
        The trained weights and their running average.
    optimizer : Optimizer
    state : mapping
        JSON values: epoch, schedule, recipe.
    """
    tensors = {
        **_named("objective", objective.state_dict()),
        **_named("average", average.state_dict()),
        **{
            f"optimizer.{row}.{name}": value
            for row, slots in optimizer.state_dict()["state"].items()
            for name, value in slots.items()
        },
    }
    part = folder / f"{FILE}.part"
    save_file(
        {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()},
        part,
        metadata={"state": json.dumps(dict(state))},
    )
    part.replace(folder / FILE)


def load_checkpoint(
    folder: Path, *, objective: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Any] | None:
    """Restore a checkpoint in place and return its state, or None if there is none.

    Raises
    ------
    BundleError
        The file is damaged or of another model.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            state: dict[str, Any] = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        objective.load_state_dict(_of("objective", tensors))
        average.load_state_dict(_of("average", tensors))
    except (SafetensorError, OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise BundleError(
            f"checkpoint {path.name} cannot be resumed ({type(error).__name__}): damaged, or of another recipe; "
            "remove it, or choose another --out"
        ) from None
    slots: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _of("optimizer", tensors).items():
        row, slot = name.split(".")
        slots.setdefault(int(row), {})[slot] = tensor
    optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
    return state


def _named(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in state.items()}


def _of(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(f"{prefix}."): tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}.")
    }
