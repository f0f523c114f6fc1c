"""Sockets find a folder that is short enough, or a person is told which setting to change."""

import os
import socket
import tempfile

import pytest

from fedmlic.errors import InputError
from sim.engines import sockets
from sim.engines.processes import SOCKET_ROOM


def test_a_short_folder_is_kept_and_a_long_one_replaced(tmp_path, monkeypatch):
    long = tmp_path / ("j" * 90)
    long.mkdir()

    assert sockets.socket_folder(10, "/tmp") == "/tmp"  # noqa: S108
    assert sockets.socket_folder(SOCKET_ROOM, str(long)) in sockets.SHORT_FOLDERS
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    assert sockets.socket_folder(SOCKET_ROOM) in sockets.SHORT_FOLDERS


def test_the_longest_path_that_is_allowed_can_be_bound():
    with tempfile.TemporaryDirectory(dir="/tmp") as folder, socket.socket(socket.AF_UNIX) as bound:
        name = os.path.join(folder, "s" * (sockets.LONGEST - len(folder) - 1))  # noqa: PTH118
        assert len(name) == sockets.LONGEST
        bound.bind(name)


def test_without_a_folder_the_setting_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(sockets, "SHORT_FOLDERS", (str(tmp_path / "absent"),))

    with pytest.raises(InputError, match="Set TMPDIR to a shorter folder"):
        sockets.socket_folder(SOCKET_ROOM, "/" + "j" * 100)
