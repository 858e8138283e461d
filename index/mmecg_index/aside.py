"""Work in a process of its own beside a server: it holds up nobody who answers, and can be ended at any moment."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence

from mmecg.errors import MmecgError
from mmecg_index.priority import lower_priority

_LOOK_S = 0.2
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}


def run_aside(module: str, arguments: Sequence[str], *, wanted: Callable[[], bool] = lambda: True) -> str | None:
    """Return what ``python -m module arguments`` prints.

    Parameters
    ----------
    module : str
        One that calls :func:`step_aside` first.
    arguments : sequence of str
    wanted : callable
        Asked five times a second; once it returns False, the process is ended.

    Returns
    -------
    str or None
        None if it was ended.

    Raises
    ------
    MmecgError
        It failed.
    """
    command = [sys.executable, "-m", module, *arguments]
    with subprocess.Popen(  # noqa: S603
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | _ONE_THREAD,
    ) as process:
        try:
            while True:
                try:
                    output, _ = process.communicate(timeout=_LOOK_S)
                    break
                except subprocess.TimeoutExpired:
                    if not wanted():
                        return None
        finally:
            process.kill()  # harmless when it has ended
    if process.returncode:
        raise MmecgError(
            f"{module} ended with exit code {process.returncode}; check the memory that is left and who may read the "
            "corpus, and run `mmecg verify` beside the server"
        )
    return output.decode()


def step_aside() -> None:
    """Let this process run when others do not want to, and end with the one that started it."""
    lower_priority()
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()
