"""Fine-tuning on two processes: they stay in step, and the first one writes the classifier."""

import os
import socket
from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing

from mmecg.adaptation.backbone import small_backbone
from mmecg.adaptation.classifier import load_classifier
from mmecg.adaptation.finetune import FinetuneConfig, finetune

from .conftest import make_examples

CONFIG = FinetuneConfig(4, "lora", epochs=2, batch_size=32, resamples=10)


def work(rank: int, port: int, folder: str) -> None:
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": "0"
    }  # fmt: skip
    torch.set_num_threads(1)
    result = finetune(small_backbone(), make_examples(96, seconds=3.0), CONFIG, Path(folder) / "out", quiet=True)
    assert (result is None) == (rank == 1)
    if result is not None:
        assert len(result.evaluation.run["history"]) == 3
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_write_one_classifier(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    multiprocessing.spawn(work, (port, str(tmp_path)), nprocs=2)
    assert load_classifier(tmp_path / "out").method == "lora"
