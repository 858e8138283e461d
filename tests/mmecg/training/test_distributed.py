"""Two processes give the gradient of one process with the whole batch."""

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn

from mmecg.modeling.loss import contrastive_loss
from mmecg.training.distributed import average_gradients, gather, initialise


def towers() -> nn.ModuleList:
    torch.manual_seed(0)
    return nn.ModuleList([nn.Linear(6, 4), nn.Linear(5, 4)])


def loss_of(model: nn.ModuleList, ecg: Tensor, text: Tensor, groups: Tensor) -> Tensor:
    queries = gather(nn.functional.normalize(model[0](ecg), dim=-1))
    keys = gather(nn.functional.normalize(model[1](text), dim=-1))
    groups = gather(groups)
    return contrastive_loss(queries, keys, (groups[:, None] == groups[None]).float(), torch.tensor(2.0))


def batch() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    ecg, text = torch.randn(8, 6, generator=generator), torch.randn(8, 5, generator=generator)
    return ecg, text, torch.tensor([0, 0, 1, 2, 3, 0, 4, 5])


def work(rank: int, port: int, folder: str) -> None:
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": "0"
    }  # fmt: skip
    assert initialise()[:2] == (rank, 2)
    model = towers()
    ecg, text, groups = (part[rank * 4 : rank * 4 + 4] for part in batch())
    loss_of(model, ecg, text, groups).backward()
    average_gradients(list(model.parameters()))
    torch.save([parameter.grad for parameter in model.parameters()], Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_give_the_gradient_of_one(tmp_path: Path, free_port: int) -> None:
    multiprocessing.spawn(work, (free_port, str(tmp_path)), nprocs=2)
    model = towers()
    loss_of(model, *batch()).backward()
    for rank in (0, 1):
        gradients = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            torch.testing.assert_close(gradient, parameter.grad)


def test_one_process_gathers_nothing() -> None:
    tensor = torch.ones(2)
    assert gather(tensor) is tensor


@pytest.fixture
def free_port() -> int:
    import socket

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])
