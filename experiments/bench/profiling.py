"""Where the time of a call goes: operations of torch, and functions of Python."""

from __future__ import annotations

import cProfile
import io
import pstats
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity
from torch.profiler import profile as operations_of

_ROWS = 15


def profiled(call: Callable[[], object], device: torch.device) -> str:
    """Two tables of a call's third run: torch's operations by their own time, and functions by theirs.

    Args:
        call: What to look at.
        device: Where it computes.
    """
    call()
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with operations_of(activities=activities) as operations:
        call()
    order = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    table = operations.key_averages().table(sort_by=order, row_limit=_ROWS, max_name_column_width=48)
    functions, text = cProfile.Profile(), io.StringIO()
    functions.runcall(call)
    pstats.Stats(functions, stream=text).sort_stats("tottime").print_stats(_ROWS)
    return f"{table}\n{text.getvalue()}"
