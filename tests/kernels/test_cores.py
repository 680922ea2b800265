"""The number of cores respects what a container may use."""

import math
import os

import pytest

from kernels.cores import available_cores, cpu_quota


@pytest.fixture
def groups(tmp_path):
    """Writes /proc/self/cgroup and the groups' files below /sys/fs/cgroup; returns the quota they amount to."""

    def write(own: str, files: dict[str, str]) -> float:
        (tmp_path / "cgroup").write_text(own)
        for name, text in files.items():
            path = tmp_path / "fs" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return cpu_quota(tmp_path / "cgroup", tmp_path / "fs")

    return write


def test_a_container_sees_its_own_group_as_the_root(groups):
    assert groups("0::/\n", {"cpu.max": "150000 100000\n"}) == 1.5


def test_the_smallest_quota_of_the_groups_around_counts(groups):
    files = {"user/cpu.max": "200000 100000\n", "user/run/cpu.max": "max 100000\n", "user/other/cpu.max": "1 100000\n"}
    assert groups("0::/user/run\n", files) == 2


@pytest.mark.parametrize("folder", ["cpu", "cpu,cpuacct"])
def test_version_1_has_quota_and_period_in_files_of_their_own(groups, folder):
    files = {f"{folder}/pod/cpu.cfs_quota_us": "400000\n", f"{folder}/pod/cpu.cfs_period_us": "100000\n"}
    assert groups("3:memory:/pod\n2:cpu,cpuacct:/pod\n", files) == 4


def test_no_limit_is_infinite(groups, tmp_path):
    assert groups("0::/\n", {"cpu.max": "max 100000\n"}) == math.inf
    files = {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}
    assert groups("2:cpu:/\n0::/\n", files) == math.inf
    assert cpu_quota(tmp_path / "none", tmp_path) == math.inf


def test_cores_are_those_of_the_affinity_up_to_the_quota(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    for quota, cores in ((math.inf, 8), (64.0, 8), (1.5, 2), (0.1, 1)):
        monkeypatch.setattr("kernels.cores.cpu_quota", lambda quota=quota: quota)
        assert available_cores() == cores


def test_this_process_has_at_least_one_core():
    assert 1 <= available_cores() <= len(os.sched_getaffinity(0))
