"""Ctrl-C, SIGTERM and a closed terminal: end every stage, give the terminal back, say one line, leave.

Everything that is published is durable and whole by the time it has a name, so leaving at once loses nothing
but the work of the targets that were running.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType

MESSAGE = "interrupted: what was finished is kept; run doit again to go on\n"
_SHOW_CURSOR = "\x1b[?25h"
#: How long the screen may take to come to rest; the thread that holds it may itself be the interrupted one.
_PATIENCE_S = 1.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def install(stop: Callable[[], None], rest: Callable[[], None], descriptor: int, *, terminal: bool) -> None:
    """Handle the three signals. ``stop`` ends the stages and must not block; ``rest`` brings the screen to rest.

    A signal that was ignored from the start (``nohup``, a background job) stays ignored. Outside the main thread
    nothing can be installed, and nothing is.
    """

    def handle(number: int, _frame: FrameType | None) -> None:
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        stop()
        # The interrupted code may be in the middle of a write and hold the screen's locks, so another thread waits.
        waiter = threading.Thread(target=rest, daemon=True)
        waiter.start()
        waiter.join(_PATIENCE_S)
        text = (f"\r{_SHOW_CURSOR}" if terminal else "") + MESSAGE
        with contextlib.suppress(OSError):
            os.write(descriptor, text.encode())
        os._exit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        return
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handle)
