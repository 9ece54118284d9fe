"""How a program starts, and how Ctrl-C ends it: with one line and exit code 130, whatever it is doing.

A main module calls `begin` before its other imports, which may take seconds. Before the program runs, and after it has ended or
failed, Ctrl-C ends it at once: there is nothing to clean up, and an interrupted import may raise any exception. While it runs,
the first Ctrl-C raises KeyboardInterrupt, so that unfinished files are removed; the second ends it at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import sys
import threading
import warnings
from types import FrameType

INTERRUPTED = 128 + signal.SIGINT
PARENT = os.getppid()  # the process that started this one; a later parent has adopted it

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h

_SILENCED = [("Grad strides do not match bucket view strides", UserWarning)]  # of PyTorch: tensors stored channels last
"""Message and category of the libraries' warnings that a user can do nothing about."""


def begin() -> None:
    """Require Linux, handle Ctrl-C unless it is ignored (as in a background job of a script), silence some warnings."""
    if sys.platform != "linux":
        print(f"error: this software runs on Linux only; this system is {sys.platform}", file=sys.stderr)
        raise SystemExit(2)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)
        sys.unraisablehook = _end_if_interrupted
    threading.excepthook = _report_faults_only
    for message, category in _SILENCED:
        warnings.filterwarnings("ignore", message, category)
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # its cache of fonts: being built, or without a folder


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks for the next step of a training run, up to 256 MiB each, instead of returning them to the
    kernel, which clears every page again: 2 to 14 % of a step's time on CPUs, for a few per cent more memory (docs/RESULTS.md).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # else another C library
        mallopt(_M_MMAP_THRESHOLD, 256 << 20)
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def arguments() -> list[str]:
    """The command-line arguments, with `~` expanded where shells do not: in `--option=~/x`, `key=~/x` and quotes."""
    return [_expand(argument) for argument in sys.argv[1:]]


def _expand(argument: str) -> str:
    name, equals, value = argument.partition("=")
    return f"{name}={os.path.expanduser(value)}" if equals else os.path.expanduser(name)


def raise_first() -> None:
    """From now on, the first Ctrl-C raises KeyboardInterrupt. For a program that has called `begin`."""
    _replace(_end, _raise)


def end_at_once() -> None:
    """From now on, Ctrl-C ends the program at once. For a program that has called `begin`."""
    _replace(_raise, _end)


def _replace(old: object, new: signal._HANDLER) -> None:
    if signal.getsignal(signal.SIGINT) is old:
        signal.signal(signal.SIGINT, new)


def _raise(number: int, frame: FrameType | None) -> None:
    end_at_once()
    raise KeyboardInterrupt


def _end(number: int, frame: FrameType | None) -> None:
    if os.environ.get("LOCAL_RANK", "0") == "0":
        with contextlib.suppress(OSError):  # the terminal may be gone
            os.write(2, b"error: interrupted\n")
    os._exit(INTERRUPTED)


def _end_if_interrupted(unraisable: sys.UnraisableHookArgs) -> None:
    """Python drops what finalisers and callbacks raise; a KeyboardInterrupt that arrives there must not get lost."""
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
        _end(signal.SIGINT, None)
    sys.__unraisablehook__(unraisable)


def _report_faults_only(failure: threading.ExceptHookArgs) -> None:
    """A full disk under a library's thread, such as TensorBoard's, is reported by the main thread, which fails too."""
    from utils.errors import explain  # which imports this module

    if failure.exc_value is None or explain(failure.exc_value) is None:
        threading.__excepthook__(failure)
