"""The lock that a vCPU lets go of while its guest runs; the guest's part is in tests/kvm/test_lock.py."""

from __future__ import annotations

import threading

import pytest

from kvm_cffi import Lock


def test_one_thread_at_a_time() -> None:
    lock, inside, most, count = Lock(), 0, 0, 0

    def work() -> None:
        nonlocal inside, most, count
        for _ in range(2000):
            with lock:
                inside += 1
                most = max(most, inside)
                count += 1
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, count) == (1, 8000)


def test_who_waits_does_not_hold_the_gil() -> None:
    lock, steps = Lock(), []

    def wait() -> None:
        with lock:
            steps.append("taken")

    with lock:
        thread = threading.Thread(target=wait)
        thread.start()
        thread.join(0.05)  # with the GIL held in there, this would never come back
        steps.append("released")
    thread.join()
    assert steps == ["released", "taken"]


def test_an_error_inside_releases_it() -> None:
    lock = Lock()
    with pytest.raises(ZeroDivisionError), lock:
        raise ZeroDivisionError
    with lock:
        pass


def test_taking_it_twice_is_an_error_and_no_deadlock() -> None:
    lock = Lock()
    with lock, pytest.raises(RuntimeError, match="cannot be taken: Resource deadlock"):
        lock.acquire()
    with pytest.raises(RuntimeError, match="cannot be released: Operation not permitted"):
        lock.release()
