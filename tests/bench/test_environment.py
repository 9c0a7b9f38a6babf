"""The machine's slug, the facts that mark a segment, and the state of the checkout, with git and without."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from spectralbench import checkout, environment
from spectralbench.record import environment_line
from spectralkernels.errors import RangeError


def git(root: Path, *arguments: str) -> str:
    settings = (
        "-c",
        "user.name=a",
        "-c",
        "user.email=a@b",
        "-c",
        "commit.gpgsign=false",
        "-c",
        "init.defaultBranch=main",
    )
    done = subprocess.run(("git", *settings, *arguments), cwd=root, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit; git reads no configuration but its own."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    root = tmp_path / "clone"
    (root / "results").mkdir(parents=True)
    (root / "kernels").mkdir()
    (root / "kernels" / "one.py").write_text("one = 1\n")
    (root / ".gitignore").write_text("*.pyc\n")
    git(root, "init", "-q")
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "first")
    return root


def test_a_clean_checkout_has_a_commit_and_no_dirt(clone: Path) -> None:
    state = checkout.state(clone)
    assert state == checkout.TreeState(git(clone, "rev-parse", "HEAD"))
    assert len(str(state.commit)) == 40


def test_every_kind_of_change_makes_it_dirty_with_a_name_of_its_own(clone: Path) -> None:
    seen = {None}

    def dirt() -> str | None:
        found = checkout.state(clone / "kernels").dirty
        assert found == checkout.state(clone).dirty, "the same from a subfolder, and the same twice"
        return found

    (clone / "kernels" / "one.py").write_text("one = 2\n")
    seen.add(dirt())
    git(clone, "add", "-A")
    seen.add(dirt())
    assert len(seen) == 2, "staging changes nothing"
    (clone / "new file.py").write_text("a")
    seen.add(dirt())
    (clone / "new file.py").write_text("b")
    seen.add(dirt())
    (clone / "kernels" / "one.py").unlink()
    seen.add(dirt())
    assert len(seen) == 5
    assert all(name is None or (len(name) == 8 and int(name, 16) >= 0) for name in seen)
    git(clone, "reset", "-q", "--hard")
    (clone / "new file.py").unlink()
    assert dirt() is None


def test_results_and_ignored_files_are_no_dirt(clone: Path) -> None:
    (clone / "results" / "new.jsonl").write_text("{}")
    (clone / "kernels" / "one.pyc").write_text("x")
    assert checkout.state(clone).dirty is None
    git(clone, "add", "-A")
    git(clone, "commit", "-q", "-m", "results")
    (clone / "results" / "new.jsonl").write_text("{}{}")
    assert checkout.state(clone).dirty is None


def test_without_git_or_commit_there_is_a_reason_and_no_exception(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outside = clone.parent / "outside"
    outside.mkdir()
    state = checkout.state(outside)
    assert (state.commit, state.dirty) == (None, None)
    assert "not a git repository" in str(state.why)
    git(outside, "init", "-q")
    assert checkout.state(outside).commit is None
    assert "HEAD" in str(checkout.state(outside).why) or "revision" in str(checkout.state(outside).why)
    assert checkout.state(clone / "nowhere").why is not None
    monkeypatch.setenv("PATH", "")
    assert checkout.state(clone) == checkout.TreeState(None, why="git is not installed")


def test_a_package_installed_inside_somebody_elses_repository_has_no_commit(clone: Path) -> None:
    installed = clone / "venv" / "site-packages" / "spectralkernels"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    (clone / "venv" / ".gitignore").write_text("*\n")
    state = checkout.state(installed)
    assert (state.commit, state.dirty) == (None, None)
    assert state.why == f"the git repository around {installed} tracks no file of it"
    file = installed / "declare.py"
    file.write_text("")
    git(clone, "add", "--force", str(installed / "__init__.py"))
    assert checkout.state(file).why == f"the git repository around {installed} does not track declare.py"
    git(clone, "add", "--force", str(file))
    assert checkout.state(file).commit == git(clone, "rev-parse", "HEAD")


def test_a_hook_that_points_at_another_repository_is_not_believed(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = git(clone, "rev-parse", "HEAD")
    other = clone.parent / "other"
    other.mkdir()
    git(other, "init", "-q")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    assert checkout.state(clone / "kernels" / "one.py") == checkout.TreeState(commit)


def test_a_shallow_clone_and_another_owner_are_said(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(clone, "commit", "-q", "--allow-empty", "-m", "second")
    git(clone.parent, "clone", "-q", "--depth", "1", f"file://{clone}", "shallow")
    state = checkout.state(clone.parent / "shallow")
    assert state.shallow and state.commit == git(clone, "rev-parse", "HEAD")
    assert environment.capture(clone.parent / "shallow")["shallow"] is True
    assert not checkout.state(clone).shallow and "shallow" not in environment.capture(clone)
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    state = checkout.state(clone)
    assert state.commit is None and "dubious ownership" in str(state.why)


def test_the_environment_is_whole_and_can_be_stored(clone: Path) -> None:
    facts = environment.capture(clone)
    assert json.loads(environment_line(facts))["machine"] == facts["machine"] == environment.machine_name()
    assert facts["commit"] == git(clone, "rev-parse", "HEAD")
    assert "no_commit" not in facts
    assert facts["torch"] == torch.__version__
    assert facts["flags"] == {
        "matmul_precision": "highest", "cudnn_tf32": False, "cudnn_benchmark": True, "deterministic": False,
    }  # fmt: skip
    wanted = {"os", "cpu", "cores", "ram_bytes", "gpu", "gpu_uuid", "driver", "cuda", "cudnn", "triton", "python",
              "threads", "blas", "dirty", "started_at"}  # fmt: skip
    assert wanted <= facts.keys()
    assert str(facts["started_at"]).endswith("+00:00")


def test_no_git_is_marked_in_the_environment(clone: Path) -> None:
    facts = environment.capture(clone.parent)
    assert facts["commit"] is None
    assert facts["dirty"] is None
    assert "not a git repository" in str(facts["no_commit"])


@pytest.mark.parametrize(
    ("name", "cores", "slug"),
    [
        ("AMD EPYC", 2, "cpu-epyc-2c-4cb4"),
        ("AMD EPYC 7763 64-Core Processor", 8, "cpu-epyc-7763-8c-4cb4"),
        ("Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz", 4, "cpu-xeon-platinum-8481c-4c-4cb4"),
        ("11th Gen Intel(R) Core(TM) i7-1165G7 @ 2.80GHz", 8, "cpu-11th-gen-i7-1165g7-8c-4cb4"),
        ("AMD Ryzen 7 7840U with Radeon 780M Graphics", 16, "cpu-ryzen-7-7840u-16c-4cb4"),
        ("", 1, "cpu-1c-4cb4"),
    ],
)
def test_cpus_are_named_without_vendor_marks_and_clock(name: str, cores: int, slug: str) -> None:
    assert environment.cpu_slug(name, cores, "25 1 1 avx2") == slug


CPUINFO = """processor	: 0
vendor_id	: AuthenticAMD
cpu family	: 25
model		: {model}
model name	: AMD EPYC
stepping	: 1
cpu MHz		: 2445.428
flags		: fpu vme sse2 rdtscp avx2 {flag} smep nopl
"""


def test_virtual_machines_of_one_name_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hypervisor names the vendor's line only; a newer kernel that reports one bug more is the same machine."""

    def named(**changes: object) -> str:
        text = CPUINFO.format(**{"model": 1, "flag": "fma", **changes})
        monkeypatch.setattr(environment, "_cpuinfo", lambda: text)
        return environment.cpu_machine()

    names = {named(), named(model=17), named(flag="fma avx512f")}
    assert len(names) == 3 and all(name.startswith("cpu-epyc-") for name in names)
    assert named(flag="fma flush_l1d") in names
    facts = environment._cpu_facts()
    assert facts == {"cpu": "AMD EPYC", "cpu_model": "AuthenticAMD 25 1 1", "cpu_flags": "avx2 fma sse2"}
    monkeypatch.setattr(environment, "_cpuinfo", lambda: "")
    assert environment.cpu_machine().startswith("cpu-")
    assert environment._cpu_facts()["cpu_flags"] is None


def test_cores_are_those_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    before = environment.cpu_machine()
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3}, raising=False)
    assert environment.usable_cores() == 1
    assert environment.cpu_machine() == before, "the machine is the same, whatever part of it is used"


def test_a_gpu_names_its_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPECTRALBENCH_MACHINE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    assert environment.machine_name() == "nvidia-h200"
    assert environment.device_kind() == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert environment.machine_name().startswith("cpu-")
    assert environment.device_kind() == "cpu"


def test_gpu_facts_survive_a_driver_without_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(
        name="NVIDIA H200", uuid="1-2", major=9, minor=0, total_memory=150 << 30, L2_cache_size=60 << 20
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    facts = environment._gpu_facts()
    assert facts["gpu"] == "NVIDIA H200"
    assert facts["gpu_uuid"] == "GPU-1-2"
    assert facts["driver"] is None
    assert str(facts["no_driver_facts"]).startswith("no NVML: ")
    properties.name = "NVIDIA H200 MIG 1g.18gb"
    assert environment._gpu_facts()["gpu_uuid"] == "MIG-1-2"
    properties.name = "NVIDIA H200"
    monkeypatch.setattr(environment.nvml.Device, "current", lambda: environment.nvml.Device(None, None, "MIG-1-2"))
    assert environment._gpu_facts()["gpu_uuid"] == "MIG-1-2", "the driver knows what a name does not tell"


def test_the_machine_can_be_named_and_a_bad_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECTRALBENCH_MACHINE", "lab-a100")
    assert environment.machine_name() == "lab-a100"
    for bad in ("Lab A100", "../up", "a--b", "-a"):
        monkeypatch.setenv("SPECTRALBENCH_MACHINE", bad)
        with pytest.raises(RangeError, match="SPECTRALBENCH_MACHINE must be lower-case letters, digits and single"):
            environment.machine_name()


def test_t40_measuring_flags_are_restored_after_an_error() -> None:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    with pytest.raises(KeyError), environment.measuring_flags():
        assert torch.backends.cudnn.allow_tf32 is False
        raise KeyError
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before
