"""The disk is full, or has changed what was written."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import NewCase
from tests.faults.harness import ONE_ENGINE

Resize = Callable[[str], None]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Resize]:
    """Mount a file system of a few pages where the first case puts its output."""
    folder = tmp_path / "case-0" / "out"

    def mount(*options: str) -> None:
        subprocess.run(["mount", *options, str(folder)], check=True, capture_output=True)

    folder.mkdir(parents=True)
    try:
        mount("-t", "tmpfs", "-o", "size=100k", "tmpfs")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a small file system can't be mounted here (it needs root)")
    yield lambda size: mount("-o", f"remount,size={size}")
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_disk_that_is_full_twice_ends_the_run_twice_and_loses_nothing(
    new_case: NewCase, small_disk: Resize
) -> None:
    case = new_case("disk full, twice", sizes=[30], engine=ONE_ENGINE)
    durable = []
    for size in ("100k", "108k"):
        small_disk(size)
        driver = case.start()
        assert driver.wait() in (1, 2), driver.told()
        errors = [line for line in driver.printed.splitlines() if line.startswith("error:")]
        assert len(errors) == 1, driver.told()
        assert "No space left on device" in errors[0], driver.told()
        assert "Traceback" not in driver.printed, driver.told()
        durable.append(case.remember())
    assert 0 < durable[0] <= durable[1] < case.traces, durable
    small_disk("20m")
    case.finish()
    case.check()


def test_damaged_checkpoint_costs_time_and_a_damaged_fragment_is_named(new_case: NewCase) -> None:
    """After the fragment is removed, its rows are done again."""
    case = new_case(
        "a page of each checkpoint and of a fragment damaged", sizes=[40], engine=ONE_ENGINE
    )
    driver, out = case.start(), Path(case.output.url)
    driver.must_reach(lambda: [*out.rglob("*.rows")], "a fragment")
    driver.must_reach(lambda: [*out.rglob("*.running")], "a checkpoint")
    driver.kill()
    fragment = min(out.rglob("*.rows"))
    for file in (fragment, *out.rglob("*.running")):
        damage(file)
    second = case.start()
    assert second.wait() in (1, 2), second.told()
    [error] = [line for line in second.printed.splitlines() if line.startswith("error:")]
    assert fragment.name in error, second.told()
    assert "is damaged" in error, second.told()
    assert "remove that file to do its rows again" in error, second.told()
    fragment.unlink()
    case.remember()
    case.finish()
    case.check()


def damage(file: Path) -> None:
    """Change a byte in the first page of a Parquet file."""
    data = bytearray(file.read_bytes())
    data[60] ^= 0xFF
    file.write_bytes(data)
