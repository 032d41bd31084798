"""Configs to start from, as ``qwq-batch init`` writes them; each folder here is one.

``FOLDER/`` in a config stands for the folder that it is written to.
"""

import shlex
from collections.abc import Iterator
from pathlib import Path

import yaml

from pipeline.errors import OutputError

STARTERS = ("label", "judge", "synthesize", "run")
_SOURCE = Path(__file__).parent


def write_starter(kind: str, location: str) -> list[Path]:
    """Write the config of ``kind`` and its input below ``location``.

    Returns the files, the config first.
    Raises `OutputError` if one of them exists: nothing is overwritten, and nothing written then.
    """
    if "://" in location:
        raise OutputError(
            f"{location} is not a local folder; write the config to one, and set input.path and "
            "output.path in it"
        )
    folder = Path(location)
    contents = {folder / name: data for name, data in _files(kind, folder)}
    if existing := [path for path in contents if path.exists()]:
        raise OutputError(
            f"{existing[0]} exists, and init overwrites nothing; choose another folder, or move "
            "that file away"
        )
    for path, data in contents.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        except OSError as error:
            raise OutputError(f"can't write {path}: {error.strerror}") from None
    return list(contents)


def _files(kind: str, folder: Path) -> Iterator[tuple[str, bytes]]:
    """The names and contents of a starter's files, its config first."""
    source = _SOURCE / kind
    config = f"{kind}.yaml"
    yield config, _with_paths((source / config).read_text(encoding="utf-8"), folder).encode()
    for path in sorted(source.rglob("*.parquet")):
        yield path.relative_to(source).as_posix(), path.read_bytes()


def _with_paths(config: str, folder: Path) -> str:
    """``config`` with the paths below ``folder``, quoted where YAML (or the shell) needs it."""
    lines = []
    for line in config.splitlines():
        quoted = shlex.quote if line.startswith("#") else _yaml_text
        before, _, after = line.partition("FOLDER/")
        name, space, after = after.partition(" ")
        path = quoted((folder / name).as_posix()) if name else ""
        lines.append(f"{before}{path}{space}{after}")
    return "\n".join(lines) + "\n"


def _yaml_text(text: str) -> str:
    dumped: str = yaml.safe_dump(text, width=float("inf"), allow_unicode=True)
    return dumped.removesuffix("\n").removesuffix("\n...")
