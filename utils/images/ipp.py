"""Intel's IPP library inside OpenCV, which is faster per pixel and slower per call."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import cv2

P = ParamSpec("P")
R = TypeVar("R")


def without_ipp(function: Callable[P, R]) -> Callable[P, R]:
    """Make OpenCV use its own code within `function`, in this thread.

    IPP asks the processor for its kind (CPUID) up to ten times per call. A virtual machine traps each of these, 8 us on our
    machine, so that resizing a face takes 80 us longer. Only for operations whose pixels are the same without IPP (a test
    compares them); bicubic resizing is not among them.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        before = cv2.ipp.useIPP()
        cv2.ipp.setUseIPP(False)
        try:
            return function(*args, **kwargs)
        finally:
            cv2.ipp.setUseIPP(before)

    return run
