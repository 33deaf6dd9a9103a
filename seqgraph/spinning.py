"""How long torch's OpenMP threads spin before they sleep."""

from __future__ import annotations

import os


def limit_spinning() -> None:
    """Let waiting OpenMP threads spin for microseconds, not milliseconds; call it before torch is first imported.

    On a busy machine spinning threads take the cores from those that work: training on two cores beside other jobs
    took 6 times as long. Sleeping at once (``OMP_WAIT_POLICY=PASSIVE``) costs a third on an idle one; a short spin
    costs neither. What the user has set is left alone.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
