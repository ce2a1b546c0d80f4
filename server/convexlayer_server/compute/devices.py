"""The devices of the workers, and the number of workers.

The visible GPUs are those of CUDA_VISIBLE_DEVICES (indices, or UUIDs that begin with ``GPU-`` or ``MIG-``; empty or -1
is none); if it is unset, those that Slurm allocated to the step or the job; else all that the driver lists. Finding
them creates no CUDA context, which would take memory on each GPU.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..errors import SettingsError
from ..settings import Settings

__all__ = ["devices_of", "worker_count"]

_DRIVER_FOLDER = Path("/proc/driver/nvidia/gpus")
"""Where NVIDIA's driver for Linux has a folder for each GPU."""

_VISIBLE = "CUDA_VISIBLE_DEVICES"
_ALLOCATED = ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS")
"""Variables in which Slurm lists the GPUs of a step or a job."""

_UUID_PREFIXES = ("GPU-", "MIG-")
"""Beginnings of the UUIDs of whole GPUs, and of parts of one (Multi-Instance GPU)."""

_MIN_WORKERS = 2
"""Default number of workers at least: one can still serve other owners while the other computes for one."""


def devices_of(
    requested: str, environment: Mapping[str, str] | None = None, driver_folder: Path = _DRIVER_FOLDER
) -> list[str]:
    """Return the devices to distribute among the workers.

    Args:
        requested: ``cpu``; ``cuda`` for all visible GPUs, or ``cuda:0,1`` for some of them, numbered from 0 as torch
            does; ``auto`` is ``cuda`` if a GPU is visible, else ``cpu``.
        environment: environment variables; by default those of the process.
        driver_folder: where the driver lists the GPUs.

    Returns:
        ``cpu`` alone; or for each GPU ``cuda:`` and the value of CUDA_VISIBLE_DEVICES that makes it alone visible.

    Raises:
        SettingsError: a requested GPU is not visible.
    """
    kind, _, indices = requested.partition(":")
    if kind == "cpu":
        return ["cpu"]
    source, gpus = _visible(os.environ if environment is None else environment, driver_folder)
    if kind == "auto":
        return [f"cuda:{gpu}" for gpu in gpus] if driver_folder.is_dir() and gpus else ["cpu"]
    if not gpus:
        raise SettingsError(f"device is {requested}, but no GPU is visible ({source}); `auto` would use the CPU")
    chosen = [int(index) for index in indices.split(",")] if indices else range(len(gpus))
    missing = [index for index in chosen if index >= len(gpus)]
    if missing:
        raise SettingsError(
            f"device is {requested}, but {len(gpus)} GPUs are visible ({source}), so there is no {missing[0]}: they "
            f"are numbered from 0 to {len(gpus) - 1}, and `cuda` is all of them"
        )
    return [f"cuda:{gpus[index]}" for index in dict.fromkeys(chosen)]


def worker_count(settings: Settings, devices: list[str]) -> int:
    """Return the number of workers: the setting, else one for each GPU and at least two."""
    return max(_MIN_WORKERS, len(devices)) if settings.workers is None else settings.workers


def _visible(environment: Mapping[str, str], driver_folder: Path) -> tuple[str, list[str]]:
    """Return the source of the list of visible GPUs, and their names there."""
    count = len(list(driver_folder.iterdir())) if driver_folder.is_dir() else None
    for name in (_VISIBLE, *_ALLOCATED):
        if name in environment:
            value = environment[name]
            return f"{name}={value}", list(dict.fromkeys(_entries(value, count)))
    return f"the driver lists {count or 'none'} in {driver_folder}", [str(index) for index in range(count or 0)]


def _entries(value: str, count: int | None) -> Iterator[str]:
    """Yield the GPUs of a list up to the first invalid one, as CUDA does; Slurm may write ranges such as 0-3."""
    for entry in filter(None, map(str.strip, value.split(","))):
        first, _, last = entry.partition("-")
        if entry.startswith(_UUID_PREFIXES):
            yield entry
        elif first.isdecimal() and (last or first).isdecimal():
            for index in range(int(first), int(last or first) + 1):
                if count is not None and index >= count:
                    return
                yield str(index)
        else:
            return
