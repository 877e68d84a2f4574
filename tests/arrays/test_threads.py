"""Threads: their number, many Python threads at once, the interpreter's lock, and forks."""

from __future__ import annotations

import concurrent.futures
import os
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest
from canonical import same_bits

import batchnorm as bn

LARGE = (16, 64, 40, 40)  # enough for every thread to have work


def _python(code: str, **environment: str) -> str:
    """Run `code` in an interpreter of its own; what it prints."""
    inherited = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    return run.stdout.strip()


@pytest.mark.parametrize("threads", [1, 2, 3, 16, np.int64(5)])
def test_number_of_threads_can_be_set(threads):
    bn.set_num_threads(threads)
    assert bn.get_num_threads() == threads
    assert type(bn.get_num_threads()) is int


_TELL = "import batchnorm; print(batchnorm.get_num_threads())"


@pytest.mark.parametrize(("setting", "threads"), [("1", 1), ("3", 3), ("17", 17), ("4,2", 4)])
def test_omp_num_threads_is_the_default(setting, threads):
    assert _python(_TELL, OMP_NUM_THREADS=setting) == str(threads)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system has no CPU affinity")
@pytest.mark.parametrize(
    "setting", [{}, {"OMP_NUM_THREADS": ""}, {"OMP_NUM_THREADS": "0"}, {"OMP_NUM_THREADS": "many"}], ids=str
)
def test_otherwise_the_cpus_allowed_are_the_default(setting):
    assert _python(_TELL, **setting) == str(len(os.sched_getaffinity(0)))


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no CPU affinity")
def test_a_process_bound_to_one_cpu_uses_one_thread():
    bind = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    assert _python(bind + _TELL) == "1"


def test_more_threads_than_work(rng):
    bn.set_num_threads(64)
    for shape in ((2, 1), (3, 2), (40_000, 1), (1, 40_000, 2)):
        x = rng.standard_normal(shape).astype(np.float32)
        y, _ = bn.batch_norm(x)
        bn.set_num_threads(1)
        assert same_bits(y, bn.batch_norm(x)[0])
        bn.set_num_threads(64)


def _results(x: np.ndarray) -> list[np.ndarray]:
    y, m = bn.batch_norm(x, activation="relu")
    return [y, m.mean, m.m2, bn.batch_norm_backward(y, x, m, activation="relu").x]


@pytest.mark.parametrize("threads", [1, 3])
def test_many_python_threads_at_once(threads, rng):
    """Each of them gets the result of its own data, whoever has the pool."""
    bn.set_num_threads(threads)
    inputs = [rng.standard_normal(shape).astype(np.float32) for shape in ((50, 3), (20_000, 7), (8, 32, 28, 28)) * 4]
    expected = [_results(x) for x in inputs]
    with concurrent.futures.ThreadPoolExecutor(len(inputs)) as pool:
        for _ in range(5):
            for found, wanted in zip(pool.map(_results, inputs), expected, strict=True):
                assert all(same_bits(a, b) for a, b in zip(found, wanted, strict=True))


def test_the_number_of_threads_may_change_while_others_compute(rng):
    x = rng.standard_normal(LARGE).astype(np.float32)
    expected = _results(x)
    done = threading.Event()

    def restless() -> None:
        for count in range(10_000):
            bn.set_num_threads(count % 7 + 1)
            if done.is_set():
                return
            time.sleep(0.0005)

    changing = threading.Thread(target=restless)
    changing.start()
    try:
        for _ in range(20):
            assert all(same_bits(a, b) for a, b in zip(_results(x), expected, strict=True))
    finally:
        done.set()
        changing.join()


@pytest.mark.parametrize("name", ["moments", "normalize", "batch_norm", "batch_norm_backward"])
def test_the_interpreter_runs_on_during_a_call(name):
    """Another Python thread makes progress during a call, so the call has released the interpreter's lock.

    With so long a switch interval nobody takes the lock from a running thread: the counting thread, which sleeps, gets
    it only where this one gives it up.
    """
    x = np.random.default_rng(0).standard_normal((1 << 21, 4)).astype(np.float32)
    m, out = bn.moments(x), np.empty_like(x)
    calls = {
        "moments": lambda: bn.moments(x),
        "normalize": lambda: bn.normalize(x, m, activation="silu", out=out),
        "batch_norm": lambda: bn.batch_norm(x, out=out),
        "batch_norm_backward": lambda: bn.batch_norm_backward(x, x, m, out=out),
    }
    bn.set_num_threads(1)
    count, done = 0, threading.Event()

    def counting() -> None:
        nonlocal count
        while not done.is_set():
            count += 1
            time.sleep(0.0002)

    interval = sys.getswitchinterval()
    counter = threading.Thread(target=counting)
    counter.start()
    sys.setswitchinterval(1000.0)
    try:
        before, until = count, time.monotonic() + 60
        while count == before and time.monotonic() < until:  # one call is enough unless no CPU is to spare
            calls[name]()
        during = count - before
    finally:
        sys.setswitchinterval(interval)
        done.set()
        counter.join()
    assert during > 0


_FORK = """
    import os, signal, sys, threading, time, warnings
    import numpy as np
    import batchnorm as bn

    warnings.simplefilter("ignore", DeprecationWarning)  # Python warns of forks in a process with threads
    bn.set_num_threads(3)
    x = np.random.default_rng(0).standard_normal({shape}).astype(np.float32)

    def compute():
        y, m = bn.batch_norm(x)
        return y.tobytes() + m.m2.tobytes() + bn.batch_norm_backward(x, x, m).x.tobytes()

    expected = compute()
    if {busy}:
        threading.Thread(target=lambda: [compute() for _ in range(10**6)], daemon=True).start()
        time.sleep(0.05)

    def child(generation):
        signal.alarm(60)
        right = bn.get_num_threads() == 3 and all(compute() == expected for _ in range(3))
        if sys.platform == "linux":  # with threads of its own, since a fork copies none
            right = right and len(os.listdir("/proc/self/task")) == 3
        if right and generation > 1:
            right = fork(generation - 1)
        os._exit(0 if right else 7)

    def fork(generation):
        pid = os.fork()
        if pid == 0:
            child(generation)
        _, status = os.waitpid(pid, 0)
        return os.waitstatus_to_exitcode(status) == 0

    assert all(fork(2) for _ in range(5)), "the child computes as its parent does"
    assert compute() == expected, "and the parent goes on"
    print("well", flush=True)
    os._exit(0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("busy", [False, True])
def test_children_of_a_fork_compute(busy):
    """After threads were used, also while another thread of the parent computes; and children of children."""
    assert _python(_FORK.format(shape=(32, 16, 20, 20), busy=busy)) == "well"


def test_exit_while_a_daemon_thread_computes():
    """Leaving the interpreter with the pool at work neither hangs nor crashes."""
    code = """
        import threading, time
        import numpy as np
        import batchnorm as bn
        bn.set_num_threads(3)
        x = np.ones((64, 64, 30, 30), dtype=np.float32)
        threading.Thread(target=lambda: [bn.moments(x) for _ in range(10**6)], daemon=True).start()
        time.sleep(0.05)
        print("well", flush=True)
    """
    assert _python(code) == "well"


def test_the_end_of_python_stops_daemon_threads_without_a_word():
    """What such a thread holds is never given back, and no binding reports it as leaked."""
    code = """
    import threading
    import numpy as np
    import batchnorm as bn

    x, begun = np.ones((64, 64, 40, 40), np.float32), threading.Event()

    def work():
        while True:
            bn.batch_norm(x)
            begun.set()

    threading.Thread(target=work, daemon=True).start()
    begun.wait()
    print("done")
    """
    assert _python(code) == "done"
