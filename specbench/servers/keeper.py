"""Keep a server running while the other end of standard input is open: python keeper.py COMMAND…

It starts the command in a process group of its own and ends the whole group once its standard input is closed, which the system
does however the process that started it ends. Once the command ends, it exits with its status. Imports nothing large.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time

GRACE = 5  # seconds for an end
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


def main() -> None:
    with_us = _die_with_parent if sys.platform == "linux" else None  # if this process is killed itself
    try:
        process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=with_us)
    except OSError as error:
        sys.exit(f"{sys.argv[1]}: {error.strerror}")
    threading.Thread(target=lambda: end_with(process), daemon=True).start()
    sys.stdin.read()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    time.sleep(GRACE)
    kill_group(process)
    os._exit(0)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)


def end_with(process: "subprocess.Popen[bytes]") -> None:
    """Wait for the command, end what it left of its group, and exit with its status."""
    status = process.wait()
    kill_group(process)
    os._exit(status if status >= 0 else 128 - status)


def kill_group(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
