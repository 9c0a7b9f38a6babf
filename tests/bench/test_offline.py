"""asv's page without a network: every remote file is put beside it, a changed or unknown one is refused."""

from __future__ import annotations

import hashlib
import io
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import Cli, one_line

from spectralbench import offline

asv = pytest.importorskip("asv")


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """The page of the asv that is installed."""
    folder = tmp_path / "html"
    folder.mkdir()
    shutil.copy(Path(asv.__file__).parent / "www" / "index.html", folder)
    return folder


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Archives as npm writes them, with other contents, and a table with their digests."""
    folder = tmp_path / "packages"
    folder.mkdir()
    parts = {}
    for name, part in offline.PARTS.items():
        parts[name] = replace(part, sha256=hashlib.sha256(part.path.encode()).hexdigest())
    for package in {part.package for part in parts.values()}:
        stem, _, version = package.rpartition("@")
        with tarfile.open(folder / f"{stem}-{version}.tgz", "w:gz") as archive:
            for part in parts.values():
                if part.package == package:
                    entry = tarfile.TarInfo(f"package/{part.path}")
                    entry.size = len(part.path.encode())
                    archive.addfile(entry, io.BytesIO(part.path.encode()))
    monkeypatch.setattr(offline, "PARTS", parts)
    return folder


def test_the_page_of_this_asv_loads_nothing_remote_any_more(page: Path, packages: Path) -> None:
    assert offline.vendor(page, packages) == len(offline.PARTS)
    text = (page / "index.html").read_text()
    assert not offline.TAG.search(text)
    assert "integrity=" not in text and "crossorigin=" not in text
    for name, part in offline.PARTS.items():
        assert f'"vendor/{name}"' in text
        assert (page / "vendor" / name).read_text() == part.path
    assert offline.vendor(page, packages) == 0
    assert (page / "index.html").read_text() == text


def test_a_changed_package_an_unknown_address_and_a_missing_one_leave_the_page_as_it_was(
    page: Path, packages: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = (page / "index.html").read_text()
    right = offline.PARTS["md5.min.js"]
    monkeypatch.setitem(offline.PARTS, "md5.min.js", replace(right, sha256="0" * 64))
    code, _, err = cli("history", "offline", str(page), "--packages", str(packages))
    assert code == 2 and "is another file than asv's: SHA-256" in one_line(err)
    monkeypatch.setitem(offline.PARTS, "md5.min.js", replace(right, path="gone.js"))
    with pytest.raises(offline.OfflineError, match=r"blueimp-md5-2.19.0.tgz has no gone.js"):
        offline.vendor(page, packages)
    (packages / "jquery-3.3.1.tgz").write_bytes(b"no archive")
    with pytest.raises(offline.OfflineError, match=r"jquery-3.3.1.tgz has no dist/jquery.min.js"):
        offline.vendor(page, packages)
    assert (page / "index.html").read_text() == before and not (page / "vendor").exists()
    (page / "index.html").write_text(before.replace("md5.min.js", "sha.min.js"))
    with pytest.raises(offline.OfflineError, match=r"loads https://\S+sha.min.js, for which no package is known"):
        offline.vendor(page, packages)
    assert "index.html" in one_line(cli("history", "offline", str(tmp_path / "nowhere"))[2])


def test_without_npm_it_says_what_to_fetch_where(page: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    code, _, err = cli("history", "offline", str(page))
    assert code == 2
    assert "npm is not installed; run `npm pack blueimp-md5@2.19.0 bootstrap@3.1.1" in one_line(err)
