"""The audit log: nothing is lost, nothing is overwritten, and what cannot be written is an error."""

import json
import os
import subprocess
import sys
import threading

import pytest

from fedmlic.audit import AuditLog
from fedmlic.errors import InputError


def entries(*paths):
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def test_entries_are_appended_with_their_time(tmp_path):
    log = AuditLog(tmp_path / "deep" / "audit.jsonl")
    log.write({"event": "sent", "text": "line\nbreak", "number": float("nan")})
    AuditLog(log.path).write({"event": "answered"})

    found = entries(log.path)
    assert [entry["event"] for entry in found] == ["sent", "answered"]
    assert found[0]["text"] == "line\nbreak"
    assert found[0]["time"].endswith("+00:00")
    assert found[0]["time"] <= found[1]["time"]


def test_full_files_are_renamed_and_the_oldest_goes(tmp_path):
    log = AuditLog(tmp_path / "audit.jsonl", most_bytes=200, kept=2)
    for number in range(20):
        log.write({"number": number})

    files = [log.path.with_name(name) for name in ("audit.jsonl.2", "audit.jsonl.1", "audit.jsonl")]
    assert all(file.stat().st_size <= 200 for file in files)
    numbers = [entry["number"] for entry in entries(*files)]
    assert numbers == list(range(numbers[0], 20))
    assert not log.path.with_name("audit.jsonl.3").exists()


def test_many_at_once_lose_nothing(tmp_path):
    def write(first):
        for number in range(first, first + 20):
            AuditLog(tmp_path / "audit.jsonl", most_bytes=2000, kept=50).write({"number": number})

    threads = [threading.Thread(target=write, args=(20 * index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    found = entries(*(path for path in tmp_path.iterdir() if not path.name.endswith(".lock")))
    assert sorted(entry["number"] for entry in found) == list(range(80))


def test_what_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="until then nothing is sent"):
        AuditLog(tmp_path / "file" / "audit.jsonl").write({})


def test_an_entry_that_the_disk_takes_in_parts_is_whole(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda handle, text: real(handle, text[:7]))
    AuditLog(tmp_path / "audit.jsonl").write({"text": "x" * 100})

    assert entries(tmp_path / "audit.jsonl")[0]["text"] == "x" * 100


@pytest.mark.skipif(sys.platform == "win32", reason="has no limits of file sizes")
def test_an_entry_for_which_there_is_no_room_is_an_error_and_leaves_nothing(tmp_path):
    """The kernel takes the part of the second entry that fits, as on a disk that is nearly full."""
    code = (
        "import resource, sys; from pathlib import Path; from fedmlic.audit import AuditLog\n"
        "log = AuditLog(Path(sys.argv[1]))\n"
        "log.write({'number': 1})\n"
        "size = log.path.stat().st_size + 20\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))\n"
        "log.write({'number': 2})\n"
    )
    path = tmp_path / "audit.jsonl"
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert "until then nothing is sent" in done.stderr
    assert [entry["number"] for entry in entries(path)] == [1]
    AuditLog(path).write({"number": 3})
    assert [entry["number"] for entry in entries(path)] == [1, 3]
