"""Make the page that `asv publish` wrote open without a network: its scripts are put beside it, from npm's packages.

asv's page loads ten files from three hosts. Each has a package of the same version here (flot's are the sources of
the minified ones; stupidtable's package exists in a later version only), and a digest that the file must have: a
package that was changed is refused.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

FOLDER = "vendor"
TAG = re.compile(r"<(?:script|link)\b[^>]*?\b(?P<kind>src|href)=\"(?P<address>https?://[^\"]+)\"[^>]*>")
FOREIGN = re.compile(r"\s(?:integrity|crossorigin|referrerpolicy)=\"[^\"]*\"")


@dataclass(frozen=True, slots=True)
class VendoredFile:
    """Where a file lies: package and version, path in its archive, and the SHA-256 that it must have."""

    package: str
    path: str
    sha256: str


PARTS: Mapping[str, VendoredFile] = {
    "jquery-3.3.1.min.js": VendoredFile("jquery@3.3.1", "dist/jquery.min.js",
        "160a426ff2894252cd7cebbdd6d6b7da8fcd319c65b70468f10b6690c45d02ef"),
    "jquery.flot.min.js": VendoredFile("flot@0.8.3", "jquery.flot.js",
        "b7b931f273c38b1277b9c6c1f4e05c4ec09885a487bddaf3279e2d7e49a38e12"),
    "jquery.flot.time.min.js": VendoredFile("flot@0.8.3", "jquery.flot.time.js",
        "a582c832adc7138a6b05aaf61f16ebac274701f1be4afea77e739a1c34b9c41a"),
    "jquery.flot.selection.min.js": VendoredFile("flot@0.8.3", "jquery.flot.selection.js",
        "e6c85f6c1ebe4b4da29d8ae238c7c5060283f05f7ef054f6b91817d02c092918"),
    "jquery.flot.categories.min.js": VendoredFile("flot@0.8.3", "jquery.flot.categories.js",
        "6e81664b28ea795c734906f4aa15614640a75ac7fbd399a7fb9084040698351a"),
    "jquery.flot.orderBars.js": VendoredFile("flot-orderbars@1.0.0", "js/jquery.flot.orderBars.js",
        "39735b4f46f96ff4e082572401f47c55a2767b366fd1d1e821e44a8d830a12bf"),
    "stupidtable.min.js": VendoredFile("stupid-table-plugin@1.1.3", "stupidtable.min.js",
        "4642380f28ebe9ed7cac251793b281ef8620c4386205d92788f9b12f5cceb4e0"),
    "md5.min.js": VendoredFile("blueimp-md5@2.19.0", "js/md5.min.js",
        "64d7ded388c562e4bde9e58ce205e5fa01b9734fcd434d496eb7b4fbfe9b927d"),
    "bootstrap.min.js": VendoredFile("bootstrap@3.1.1", "docs/dist/js/bootstrap.min.js",
        "898d05a17f2cfc5120ddcdba47a885c378c0b466f30f0700e502757e24b403a1"),
    "bootstrap.min.css": VendoredFile("bootstrap@3.1.1", "docs/dist/css/bootstrap.min.css",
        "e9503448692b738dd260fbd7f7cabf2e11f09b600fa97e6eb3a56eba5b1a7e9b"),
}  # fmt: skip
"""By the last part of the address that asv's page asks for."""


class OfflineError(Exception):
    """The page cannot be made to open without a network; the message says what is missing."""


def vendor(page: Path, packages: Path | None = None) -> int:
    """Put every file that `page/index.html` loads from a network beside it; how many. A second call finds none.

    page: asv's html_dir. packages: a folder with the archives that `npm pack` writes; None: npm is asked for them.
    Nothing is written before everything is there. Raises: OfflineError; OSError where the page is not there or fixed.
    """
    index = page / "index.html"
    text = index.read_text(encoding="utf-8")
    wanted: dict[str, VendoredFile] = {}
    for tag in TAG.finditer(text):
        name = tag["address"].rpartition("/")[2]
        if name not in PARTS:
            raise OfflineError(f"{index} loads {tag['address']}, for which no package is known here")
        wanted[name] = PARTS[name]
    if not wanted:
        return 0
    with tempfile.TemporaryDirectory() as fetched:
        if packages is None:
            _fetch(sorted({part.package for part in wanted.values()}), Path(fetched))
        contents = {name: _content(part, packages or Path(fetched)) for name, part in wanted.items()}
    (page / FOLDER).mkdir(exist_ok=True)
    for name, content in contents.items():
        (page / FOLDER / name).write_bytes(content)
    index.write_text(TAG.sub(_local, text), encoding="utf-8")
    return len(wanted)


def _local(tag: re.Match[str]) -> str:
    """The same tag for the file beside the page."""
    name = tag["address"].rpartition("/")[2]
    return FOREIGN.sub("", tag[0].replace(tag["address"], f"{FOLDER}/{name}"))


def _fetch(packages: list[str], folder: Path) -> None:
    command = ["npm", "pack", "--silent", "--pack-destination", str(folder), *packages]
    advice = f"run `npm pack {' '.join(packages)}` where there is a network, and give its folder with --packages"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    except FileNotFoundError:
        raise OfflineError(f"npm is not installed; {advice}") from None
    except subprocess.TimeoutExpired:
        raise OfflineError(f"npm did not answer in five minutes; {advice}") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise OfflineError(f"npm pack failed: {said[0] if said else done.returncode}; {advice}")


def _content(part: VendoredFile, folder: Path) -> bytes:
    name, _, version = part.package.rpartition("@")
    archive = folder / f"{name}-{version}.tgz"
    try:
        with tarfile.open(archive) as opened:
            member = opened.extractfile(f"package/{part.path}")
            content = b"" if member is None else member.read()
    except (OSError, KeyError, tarfile.TarError) as error:
        raise OfflineError(f"{archive} has no {part.path}: {error}") from None
    found = hashlib.sha256(content).hexdigest()
    if found != part.sha256:
        raise OfflineError(f"{part.path} of {archive} is another file than asv's: SHA-256 {found}, not {part.sha256}")
    return content
