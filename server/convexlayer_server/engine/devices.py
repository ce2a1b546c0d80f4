"""The devices that workers compute on, and how many workers there are to be.

The GPUs that are visible are those of CUDA_VISIBLE_DEVICES (indices, UUIDs that begin with ``GPU-`` or ``MIG-``; empty
or -1 is none); where it is not set, those that Slurm allocated to the step or the job; else all that the driver lists.
No CUDA context is made to find them, which would take memory of each.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..errors import SettingsError
from ..settings import Settings

__all__ = ["devices_of", "worker_count"]

_LISTED = Path("/proc/driver/nvidia/gpus")
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_ALLOCATED = ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS")
_UUIDS = ("GPU-", "MIG-")
_LEAST_WORKERS = 2


def devices_of(wanted: str, environment: Mapping[str, str] | None = None, listed: Path = _LISTED) -> list[str]:
    """The devices to share among the workers.

    Args:
        wanted: ``cpu``; ``cuda`` for all GPUs that are visible, ``cuda:0,1`` for some of them, counted from 0 as torch
            does; ``auto`` is ``cuda`` where a GPU is visible, else ``cpu``.
        environment: variables; those of the process unless given.
        listed: where the driver lists the GPUs.

    Returns:
        ``cpu`` alone, or for each GPU ``cuda:`` and what CUDA_VISIBLE_DEVICES is to be where it alone is to be seen.

    Raises:
        SettingsError: a GPU is asked for that is not visible.
    """
    kind, _, indices = wanted.partition(":")
    if kind == "cpu":
        return ["cpu"]
    source, gpus = _visible(os.environ if environment is None else environment, listed)
    if kind == "auto":
        return [f"cuda:{gpu}" for gpu in gpus] if listed.is_dir() and gpus else ["cpu"]
    if not gpus:
        raise SettingsError(f"device is {wanted}, but no GPU is visible ({source}): `auto` would compute on the CPU")
    chosen = [int(index) for index in indices.split(",")] if indices else range(len(gpus))
    beyond = [index for index in chosen if index >= len(gpus)]
    if beyond:
        raise SettingsError(
            f"device is {wanted}, but {len(gpus)} GPUs are visible ({source}), so there is no {beyond[0]}: they are "
            f"counted from 0 to {len(gpus) - 1}, and `cuda` is all of them"
        )
    return [f"cuda:{gpus[index]}" for index in dict.fromkeys(chosen)]


def worker_count(settings: Settings, devices: list[str]) -> int:
    """How many workers there are to be: what is set, else one for each GPU, and no fewer than two."""
    return max(_LEAST_WORKERS, len(devices)) if settings.workers is None else settings.workers


def _visible(environment: Mapping[str, str], listed: Path) -> tuple[str, list[str]]:
    """Where it stands which GPUs are visible, and what each is called there."""
    count = len(list(listed.iterdir())) if listed.is_dir() else None
    for name in (_VISIBLE, *_ALLOCATED):
        if name in environment:
            value = environment[name]
            return f"{name}={value}", list(dict.fromkeys(_entries(value, count)))
    return f"the driver lists {count or 'none'} in {listed}", [str(index) for index in range(count or 0)]


def _entries(value: str, count: int | None) -> Iterator[str]:
    """The GPUs of a list, to the first that there is not, as CUDA reads it; Slurm may write ranges such as 0-3."""
    for entry in filter(None, map(str.strip, value.split(","))):
        first, _, last = entry.partition("-")
        if entry.startswith(_UUIDS):
            yield entry
        elif first.isdecimal() and (last or first).isdecimal():
            for index in range(int(first), int(last or first) + 1):
                if count is not None and index >= count:
                    return
                yield str(index)
        else:
            return
