"""Which commit is checked out, and what in the working tree differs from it (standard library and git only)."""

from __future__ import annotations

import hashlib
import subprocess
from dataclasses import dataclass
from pathlib import Path

# Results are what measuring writes; they cannot change what is measured.
_NOT_RESULTS = ":(top,exclude)results"
_TIMEOUT = 60


@dataclass(frozen=True, slots=True)
class State:
    """commit: 40 hex digits or None, and then `why`. dirty: None, or eight hex digits of all differences."""

    commit: str | None
    dirty: str | None = None
    why: str | None = None


def state(root: Path) -> State:
    """The state of the git checkout around `root`; never an exception, since a benchmark must run without git too.

    A repository that tracks no file below `root` says nothing of the code there: a package is installed inside it.
    """
    try:
        commit = _git(root, "rev-parse", "--verify", "HEAD").decode().strip()
        if not _git(root, "ls-files", "--", "."):
            return State(None, why=f"the git repository around {root} tracks no file of it")
        return State(commit, _difference(root))
    except FileNotFoundError:
        return State(None, why="git is not installed" if root.is_dir() else f"{root} is not a folder")
    except (OSError, subprocess.TimeoutExpired) as error:
        return State(None, why=f"git could not be run: {error}")
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines()
        return State(None, why=said[0] if said else f"git exited with {error.returncode}")


def _difference(root: Path) -> str | None:
    """Eight hex digits over the diff to HEAD and every untracked file, results/ excluded; None if there is nothing."""
    top = Path(_git(root, "rev-parse", "--show-toplevel").decode().rstrip("\n"))
    diff = _git(top, "diff", "HEAD", "--binary", "--no-ext-diff", "--no-color", "--", ".", _NOT_RESULTS)
    listed = _git(top, "ls-files", "--others", "--exclude-standard", "-z", "--", ".", _NOT_RESULTS)
    untracked = sorted(name for name in listed.split(b"\0") if name)
    if not diff and not untracked:
        return None
    digest = hashlib.sha256(diff)
    for name in untracked:
        digest.update(b"\0" + name + b"\0")
        path = top / name.decode(errors="surrogateescape")
        if path.is_file():
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:8]


def _git(root: Path, *arguments: str) -> bytes:
    # No optional locks: reading must not disturb a git command of the user's.
    command = ("git", "--no-optional-locks", "-C", str(root), *arguments)
    return subprocess.run(command, check=True, capture_output=True, timeout=_TIMEOUT).stdout
