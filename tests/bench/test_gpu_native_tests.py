"""The stage of `python3 -m spectralbench.gpu` that runs the tests marked cuda: what it keeps, and what it lacks."""

from __future__ import annotations

from pathlib import Path

import pytest

from spectralbench.gpu import native_tests


@pytest.mark.slow
def test_native_tests_keep_a_result_each_and_run_once(tmp_path: Path) -> None:
    tests = tmp_path / "tests"
    tests.mkdir()
    (tests / "test_some.py").write_text(
        "import pytest\n"
        "@pytest.mark.cuda\ndef test_fine(): pass\n"
        "@pytest.mark.cuda\ndef test_wrong(): assert 1 == 2\n"
        "@pytest.mark.cuda\ndef test_absent(): pytest.skip('no')\n"
        "def test_elsewhere(): raise RuntimeError\n"
    )
    (tests / "test_other.py").write_text("import nothing_of_this_name\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = cuda: needs a device\n")
    kept = tmp_path / "kept.jsonl"
    kept.write_text('{"test": "torn')
    found = native_tests.run(tests, kept, 120.0)
    assert (found["ran"], found["passed"], found["failed"], found["skipped"]) == (True, 1, 1, 1), kept.read_text()
    assert "test_wrong" in found["failures"][0] and "assert 1 == 2" in found["failures"][0]
    (tests / "test_some.py").write_text("import pytest\n@pytest.mark.cuda\ndef test_wrong(): pass\n")
    assert native_tests.run(tests, kept, 120.0) == found, "what has a result does not run again"


def test_native_tests_stop_with_their_stage(tmp_path: Path) -> None:
    tests = tmp_path / "tests"
    tests.mkdir()
    (tests / "test_slow.py").write_text("import time, pytest\n@pytest.mark.cuda\ndef test_slow(): time.sleep(600)\n")
    found = native_tests.run(tests, tmp_path / "kept.jsonl", 1.0)
    assert not found["ran"] and found["reason"] == "stopped after 1 s, the time of the stage; run again for the rest"


def test_without_pytest_or_tests_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert native_tests.unavailable(tmp_path / "none") == f"there is no folder {tmp_path / 'none'}"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert native_tests.unavailable(tmp_path) == "pytest is not installed"
