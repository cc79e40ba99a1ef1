"""The threads of the compiled kernels."""

import os
import signal
import subprocess
import sys
from textwrap import dedent

import pytest

from retinakit.kernels import compiled

pytestmark = [
    pytest.mark.skipif(compiled is None, reason="the kernels were not compiled"),
    pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the kernels start their own"),
]

START = """
    import os
    import torch
    from retinakit.layers import Support, factorized_readout

    torch.set_num_threads(3)
    random = torch.Generator().manual_seed(0)
    features, mask, weight = (
        torch.randn(size, generator=random) for size in [(40, 4, 50), (50, 9), (4, 9)]
    )
    support = Support.of(mask > 0)

    def read():
        return factorized_readout(features, mask, weight, algorithm="sparse", support=support)

"""


def run(work: str) -> str:
    """What a new process prints, within a minute."""
    program = dedent(START) + dedent(work)
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, _ = process.communicate(timeout=60)
    finally:
        if process.poll() is None:  # with the children that it may be waiting for
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0
    return out


def test_the_threads_are_those_of_torch():
    counts = run("""
        def threads():
            return len(os.listdir("/proc/self/task"))

        before = threads()
        read()
        print(threads() - before)
        (torch.ones(1_000_000) + 1).sum()
        print(threads() - before)
    """)
    assert counts.split() == ["2", "2"]


def test_a_forked_process_does_not_wait_for_its_parents_threads():
    assert "the same" in run("""
        expected = read()
        child = os.fork()
        if child == 0:
            print("the same" if torch.equal(read(), expected) else "another", flush=True)
            os._exit(0)
        os.waitpid(child, 0)
    """)
