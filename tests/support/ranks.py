"""Ranks for tests: a function in forked processes, which have everything loaded already."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping

import torch
from torch.multiprocessing.spawn import start_processes


def run_ranks(work: Callable[..., None], *arguments: object, num_ranks: int = 2, timeout: float = 240.0) -> None:
    """Runs a function once a rank; the ranks find each other by the environment, as torchrun's do.

    Args:
        work: The function; what it raises in a rank ends the others and is raised here.
        *arguments: The same for each rank.
        num_ranks: At least 1.
        timeout: Seconds for all of it.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": str(num_ranks), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = start_processes(_one_rank, (shared, work, arguments), nprocs=num_ranks, join=False, start_method="fork")  # type: ignore[no-untyped-call]
    assert ranks is not None
    end = time.monotonic() + timeout
    try:
        while not ranks.join(timeout=end - time.monotonic()):
            assert time.monotonic() < end, f"the ranks have not finished after {timeout} seconds"
    finally:
        for process in ranks.processes:
            process.kill()


def _one_rank(rank: int, shared: Mapping[str, str], work: Callable[..., None], arguments: tuple[object, ...]) -> None:
    os.environ.update({**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
    torch.set_num_threads(1)
    work(*arguments)
