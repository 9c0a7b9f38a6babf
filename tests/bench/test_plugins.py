"""Operations of other packages: listed, run and reported by name; a broken one costs itself alone and is named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import Cli, one_line

from spectralbench import plugins, sweep
from spectralbench.worker import Sources
from spectralbench.workloads import ours

BLUR = '''
"""Three quarters of a map."""
import torch
from spectralkernels.declare import Block, Cost, Decision, Implementation, Operation, Tolerance

def blur(x):
    return 0.75 * x

def halves(x):
    return 0.5 * x + 0.25 * x

OPERATION = Operation(
    name="NAME", summary="three quarters of a map", version=1, source="a test",
    profiles={profile: (Block({"size": (8,), "rate": (0.0, 0.5)}),) for profile in ("smoke", "quick")},
    make_inputs=lambda case, device: {
        "x": torch.randn(case["size"], generator=torch.Generator().manual_seed(case.seed)).to(device)
    },
    reference=lambda x: 0.75 * x.double(),
    cost=lambda case: Cost(4 * case["size"], 4 * case["size"], case["size"]),
    fft_size=lambda case: (case["size"],),
    tolerance=Tolerance({"float32": 1e-6}, "two roundings"),
    implementations=(
        Implementation("plain", "baseline", blur, "torch"), Implementation("halves", "kernel", halves, "torch")
    ),
    auto=lambda **inputs: Decision("plain", "a test"),
)
'''


def install(folder: Path, files: dict[str, str], points: dict[str, str]) -> None:
    """What pip leaves of a package: its files, and the entry points beside its metadata."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    about = folder / "tiny_blurs-1.5.dist-info"
    about.mkdir(exist_ok=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-blurs\nVersion: 1.5\n")
    listed = "".join(f"{name} = {value}\n" for name, value in points.items())
    (about / "entry_points.txt").write_text(f"[{plugins.GROUP}]\n{listed}")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of installed packages, for this process alone."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    before = set(sys.modules)
    plugins.load.cache_clear()
    yield folder
    plugins.load.cache_clear()
    for name in set(sys.modules) - before:
        if name.startswith("tiny_"):
            del sys.modules[name]


def loaded() -> plugins.Plugins:
    return plugins.load(frozenset(ours()))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import nothing_of_that_name", "ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("import pytest\npytest.skip('no GPU', allow_module_level=True)", "Skipped: no GPU"),
        ("", "AttributeError: it declares no OPERATION and is no folder of modules that do"),
        ("OPERATION = 3", "TypeError: OPERATION must be a spectralkernels.declare.Operation, got int"),
        (BLUR.replace("NAME", "masked_conv2d"), "ValueError: the name 'masked_conv2d' belongs to another operation"),
        (BLUR.replace("NAME", "good"), "ValueError: the name 'good' belongs to another operation"),
        (BLUR.replace("NAME", "../up"), "ValueError: operation must be a name of at most 100 letters"),
        (
            BLUR.replace("NAME", "bad").replace('"halves"', '"half and half"'),
            "ValueError: implementation must be a name",
        ),
        (BLUR.replace("NAME", "bad").replace('"kernel"', '"winner"'), "ValueError: role must be "),
        (BLUR.replace("NAME", "bad").replace("(8,)", "([8],)"), "ValueError: case must be "),
        (BLUR.replace("NAME", "bad").replace("version=1, ", ""), "TypeError: "),
        (BLUR.replace("NAME", "bad").replace("Cost(4", "Cst(4"), "NameError: name 'Cst' is not defined"),
        (
            BLUR.replace("NAME", "bad").replace('(case["size"],),', "(-1,),"),
            "ValueError: fft_size must be a list of sizes",
        ),
        (
            BLUR.replace("NAME", "bad").replace('"three quarters of a map"', "3"),
            "ValueError: what it says of itself must",
        ),
    ],
)
def test_what_is_broken_is_named_and_leaves_the_others(site: Path, text: str, message: str) -> None:
    install(
        site, {"tiny_good.py": BLUR.replace("NAME", "good"), "tiny_bad.py": text}, {"a": "tiny_good", "b": "tiny_bad"}
    )
    found = loaded()
    assert list(found.operations) == ["good"]
    (said,) = found.broken
    assert said.startswith(f"b (tiny_bad) of tiny-blurs 1.5: {message}")


def test_what_an_import_prints_is_talk(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install(site, {"tiny_loud.py": f"print('hello')\n{BLUR.replace('NAME', 'loud')}"}, {"a": "tiny_loud"})
    assert list(loaded().operations) == ["loud"]
    assert capsys.readouterr() == ("", "hello\n")


@pytest.mark.slow
def test_what_it_writes_to_the_descriptor_of_stdout_stays_out_of_the_data(site: Path, tmp_path: Path) -> None:
    """As a library in C does, and a child process."""
    noise = "import os\nos.write(1, b'from a library\\n')\nos.system('echo from a child')\n"
    install(site, {"tiny_loud.py": noise + BLUR.replace("NAME", "loud")}, {"a": "tiny_loud"})
    path = os.pathsep.join([str(site), *(entry for entry in sys.path if entry)])
    done = subprocess.run(
        [sys.executable, "-m", "spectralbench", "list", "loud", "--json"],
        env={**os.environ, "PYTHONPATH": path}, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "loud" in [json.loads(line).get("name") for line in done.stdout.splitlines()]
    assert "from a library" in done.stderr and "from a child" in done.stderr


def test_the_digest_is_of_all_sources_and_imports_none(site: Path) -> None:
    assert plugins.digest() is None
    files = {
        "tiny_pair/__init__.py": "raise RuntimeError",
        "tiny_pair/inner/deep.py": "A = 1",
        "tiny_alone.py": "1 / 0",
    }
    install(site, files, {"a": "tiny_pair.inner", "b": "tiny_alone", "c": "tiny_nowhere"})
    first = plugins.digest()
    assert first is not None and first == plugins.digest()
    (site / "tiny_pair/inner/deep.py").write_text("A = 2")
    assert plugins.digest() != first


def test_the_command_line_lists_runs_and_reports_it(
    site: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Sources(operations="spectralbench.workloads:load_operations")
    monkeypatch.setattr(sweep, "SOURCES", real)
    files = {"tiny_good.py": BLUR.replace("NAME", "tiny_blur"), "tiny_bad.py": "import nothing_of_that_name"}
    install(site, files, {"good": "tiny_good", "bad": "tiny_bad"})
    code, out, err = cli("list", "tiny_blur")
    assert code == 0 and "three quarters" in out and "halves" in out
    assert "plug-in left out: bad (tiny_bad) of tiny-blurs 1.5: ModuleNotFoundError" in err
    code, _, err = cli("list", "tiny_blurr")
    assert code == 2 and "unknown operation 'tiny_blurr', did you mean 'tiny_blur'?" in one_line(err)
    code, out, err = cli("run", "tiny_blur", "--profile", "smoke", "--set", "rate=0.5")
    assert code == 0 and "halves" in out
    assert "code of plug-ins is measured, which no commit of ours names" in err
    _, _, err = cli("run", "tiny_blur", "--profile", "smoke", "--set", "rate=0.5")
    assert "2 records were stored already" in err
    (site / "tiny_good.py").write_text(files["tiny_good.py"].replace("0.75 * x\n", "x * 0.75\n"))
    _, out, err = cli("run", "tiny_blur", "--profile", "smoke", "--set", "rate=0.5", "--dry-run")
    assert "1 cases to measure, 0 records stored already" in out
    _, out, err = cli("run", "--profile", "smoke", "--dry-run", "--impl", "dft_gemm")
    assert "tiny_blur" not in out and "operations of plug-ins are run by name: tiny_blur" in err
    assert cli("report")[0] == 0
    assert "tiny blur" in (tmp_path / "results" / "REPORT.md").read_text()
