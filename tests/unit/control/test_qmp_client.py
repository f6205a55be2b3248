"""Our client of QMP: whatever is at the other end says is an answer, or one line for the user."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.control.qmp.client import QmpClient
from pyvmm.errors import UserError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
MEMBER = st.sampled_from(["return", "error", "event", "data", "timestamp"])


@contextmanager
def answering(path: str, said: bytes) -> Iterator[None]:
    """One at *path* who greets, takes the negotiation, and says *said*; then it closes, and has read no more."""

    def serve() -> None:
        client, _ = listener.accept()
        with client:
            client.sendall(b'{"QMP": {}}\r\n')
            client.recv(4096)
            client.sendall(b'{"return": {}}\r\n' + said)
            asked.wait()

    asked = threading.Event()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1)
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with QmpClient(path) as client:
                client._socket.sendall(b" ")  # which nobody reads
                asked.set()
                client.execute("device_del", id="a")
                client.wait_for("DEVICE_DELETED", device="a")
            yield
        finally:
            asked.set()
            thread.join()


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"", "the machine has ended"),
        (b'{"error": "x"}\r\n', "does not speak QMP"),
        (b'{"return": {}}\r\n{"event": "DEVICE_DELETED", "data": 5}\r\n', "does not speak QMP"),
        (b'{"return": {}}\r\n', "the machine has ended"),
    ],
)
def test_who_is_there_says_it_wrong(tmp_path: Path, said: bytes, why: str) -> None:
    with pytest.raises(UserError, match=why), answering(str(tmp_path / "qmp"), said):
        pass


@given(st.lists(JSON | st.dictionaries(MEMBER, JSON, max_size=4), max_size=4))
def test_any_json(messages: list[object]) -> None:
    said = b"".join(json.dumps(message).encode() + b"\r\n" for message in messages)
    with TemporaryDirectory() as directory:
        try:
            with answering(f"{directory}/qmp", said):
                pass
        except UserError as error:
            assert "\n" not in str(error)
