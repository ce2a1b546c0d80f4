"""The devices and the number of workers."""

from __future__ import annotations

from pathlib import Path

import pytest

from convexlayer_server import Settings
from convexlayer_server.compute.devices import devices_of, worker_count
from convexlayer_server.errors import SettingsError

UUID = "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6"
MIG = "MIG-d4a2bb7e-3f0c-5b2e-a1d1-2f1f5f3a6f6c"


@pytest.fixture
def eight(tmp_path: Path) -> Path:
    """A driver folder with eight GPUs."""
    for number in range(8):
        (tmp_path / f"0000:{number:02x}:00.0").mkdir()
    return tmp_path


def cuda(*names: object) -> list[str]:
    return [f"cuda:{name}" for name in names]


@pytest.mark.parametrize(
    ("variables", "visible"),
    [
        ({}, range(8)),
        ({"CUDA_VISIBLE_DEVICES": "2,5"}, [2, 5]),
        ({"CUDA_VISIBLE_DEVICES": " 5, 2 "}, [5, 2]),
        ({"CUDA_VISIBLE_DEVICES": f"{UUID},{MIG}"}, [UUID, MIG]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-8932f937"}, ["GPU-8932f937"]),
        ({"CUDA_VISIBLE_DEVICES": "1,-1,2"}, [1]),
        ({"CUDA_VISIBLE_DEVICES": "1,8,2"}, [1]),
        ({"CUDA_VISIBLE_DEVICES": "3,3"}, [3]),
        ({"CUDA_VISIBLE_DEVICES": "4", "SLURM_JOB_GPUS": "0,1"}, [4]),
        ({"SLURM_JOB_GPUS": "6,7"}, [6, 7]),
        ({"SLURM_JOB_GPUS": "0-3", "SLURM_STEP_GPUS": "2-3,5"}, [2, 3, 5]),
    ],
)
def test_visible_gpus(eight: Path, variables: dict[str, str], visible: list[object]) -> None:
    assert devices_of("auto", variables, eight) == devices_of("cuda", variables, eight) == cuda(*visible)
    assert devices_of("cpu", variables, eight) == ["cpu"]


@pytest.mark.parametrize("hidden", ["", "-1", "NoDevFiles", "none", "8"])
def test_no_visible_gpu(eight: Path, hidden: str) -> None:
    variables = {"CUDA_VISIBLE_DEVICES": hidden, "SLURM_JOB_GPUS": "0"}
    assert devices_of("auto", variables, eight) == ["cpu"]
    for requested in ("cuda", "cuda:0"):
        with pytest.raises(SettingsError, match=rf"no GPU is visible \(CUDA_VISIBLE_DEVICES={hidden}\).*auto"):
            devices_of(requested, variables, eight)


def test_without_a_driver(tmp_path: Path) -> None:
    missing = tmp_path / "none"
    for variables in ({}, {"CUDA_VISIBLE_DEVICES": "0"}):
        assert devices_of("auto", variables, missing) == ["cpu"]
    with pytest.raises(SettingsError, match=r"no GPU is visible \(the driver lists none"):
        devices_of("cuda", {}, missing)
    assert devices_of("cuda", {"CUDA_VISIBLE_DEVICES": "0,1"}, missing) == cuda(0, 1)  # a driver without that folder


def test_indices_count_visible_gpus(eight: Path) -> None:
    variables = {"CUDA_VISIBLE_DEVICES": f"6,{UUID},2"}
    assert devices_of("cuda:1,2", variables, eight) == cuda(UUID, 2)
    assert devices_of("cuda:0,0", variables, eight) == cuda(6)
    with pytest.raises(SettingsError, match=r"cuda:0,3, but 3 GPUs are visible .*so there is no 3.*from 0 to 2"):
        devices_of("cuda:0,3", variables, eight)


@pytest.mark.parametrize(
    ("devices", "unset"), [(["cpu"], 2), (cuda(0), 2), (cuda(*range(8)), 8), (cuda(UUID, MIG, 3), 3)]
)
def test_number_of_workers(devices: list[str], unset: int) -> None:
    assert worker_count(Settings(), devices) == unset
    for count in (0, 1, 5):
        assert worker_count(Settings(workers=count), devices) == count
