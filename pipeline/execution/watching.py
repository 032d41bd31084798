"""A thread that looks at something again and again while a run goes on."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipeline.time_limits import FOLLOWER_JOIN_SECONDS

logger = logging.getLogger(__name__)


@contextmanager
def watching(name: str, look: Callable[[], None], seconds: float) -> Iterator[None]:
    """While the body runs, call ``look`` every so many ``seconds``, in a thread called ``name``.

    A look that fails is left out: the coordinator's node may be gone, or the cluster busy.
    """
    over = threading.Event()

    def watch() -> None:
        while not over.wait(seconds):
            try:
                look()
            except Exception:
                logger.debug("no look at the %s", name, exc_info=True)

    thread = threading.Thread(target=watch, daemon=True, name=name)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=FOLLOWER_JOIN_SECONDS)
