"""Which commit is checked out, and what in the working tree differs from it (standard library and git only)."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# Results are what measuring writes; they cannot change what is measured.
_NOT_RESULTS = ":(top,exclude)results"
_TIMEOUT = 60
_POINTERS = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY", "GIT_NAMESPACE")


@dataclass(frozen=True, slots=True)
class TreeState:
    """commit: 40 hex digits or None, and then `why`. dirty: None, or eight hex digits of all differences.

    shallow: the clone lacks older commits, so that nobody can say here how they follow each other.
    """

    commit: str | None
    dirty: str | None = None
    why: str | None = None
    shallow: bool = False


def state(code: Path) -> TreeState:
    """The state of the git checkout around `code`, a file or folder of the code that runs.

    Never an exception, since a benchmark must run without git too. A repository that does not track that file, or no
    file of that folder, says nothing of the code there: a package is installed inside it.
    """
    root, name = (code.parent, code.name) if code.is_file() else (code, ".")
    try:
        commit = git(root, "rev-parse", "--verify", "HEAD").decode().strip()
        if not git(root, "ls-files", "--", name):
            lacks = "tracks no file of it" if name == "." else f"does not track {name}"
            return TreeState(None, why=f"the git repository around {root} {lacks}")
        return TreeState(commit, _difference(root), shallow=is_shallow(root))
    except FileNotFoundError:
        return TreeState(None, why="git is not installed" if root.is_dir() else f"{root} is not a folder")
    except (OSError, subprocess.TimeoutExpired) as error:
        return TreeState(None, why=f"git could not be run: {error}")
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines()
        return TreeState(None, why=said[0] if said else f"git exited with {error.returncode}")


def _difference(root: Path) -> str | None:
    """Eight hex digits over the diff to HEAD and every untracked file, results/ excluded; None if there is nothing."""
    top = Path(git(root, "rev-parse", "--show-toplevel").decode().rstrip("\n"))
    diff = git(top, "diff", "HEAD", "--binary", "--no-ext-diff", "--no-color", "--", ".", _NOT_RESULTS)
    listed = git(top, "ls-files", "--others", "--exclude-standard", "-z", "--", ".", _NOT_RESULTS)
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


def digest(folders: Sequence[Path]) -> str:
    """Eight hex digits of all Python sources below `folders`, which stand in for a commit where there is none."""
    found = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            found.update(f"{folder.name}/{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return found.hexdigest()[:8]


def is_shallow(root: Path) -> bool:
    """Whether the clone around `root` lacks older commits. Raises: as `git` does."""
    return git(root, "rev-parse", "--is-shallow-repository").strip() == b"true"


def git(root: Path, *arguments: str, given: bytes = b"") -> bytes:
    """What git writes in the repository around `root`, whatever repository a hook that called us points at.

    given: its standard input. Raises: OSError, subprocess.CalledProcessError, subprocess.TimeoutExpired.
    """
    # No optional locks: reading must not disturb a git command of the user's.
    command = ("git", "--no-optional-locks", "-C", str(root), *arguments)
    surroundings = {name: value for name, value in os.environ.items() if name not in _POINTERS}
    done = subprocess.run(command, check=True, capture_output=True, timeout=_TIMEOUT, input=given, env=surroundings)
    return done.stdout
