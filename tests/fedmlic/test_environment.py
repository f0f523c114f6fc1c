"""What a run was computed with, and nothing that is secret."""

import os
import shlex
import subprocess
import sys

import pytest

from fedmlic import environment as module
from fedmlic.environment import command_of, cpu_model, environment, git_state, memory_bytes, without_secrets
from fedmlic.experiment import split_settings
from sim.commands.settings import read_settings


def git(folder, *words):
    own = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "PATH": os.environ["PATH"]}
    names = ["-c", "user.name=a", "-c", "user.email=a@b"]
    return subprocess.run(
        ["git", *names, "-C", str(folder), *words], check=True, capture_output=True, text=True, env=own
    ).stdout.strip()


def test_the_command_starts_the_same_experiment(tiny):
    experiment, runtime = tiny(mods="clip(norm=1.0)", channels_last=True, out="/home/me/runs", home="/home/me/cache")

    program, command, *pairs = shlex.split(command_of(experiment, runtime))

    assert (program, command) == ("fedmlic", "run")
    again, where = split_settings(read_settings(pairs))
    assert again == experiment
    assert where == runtime.model_copy(update={"out": "", "home": ""})
    assert not any("/home/me" in pair for pair in pairs)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ray://me:pass@head:10001", "ray://***@head:10001"),
        ("https://tok3n@hub/x", "https://***@hub/x"),
        ("mine(root='a', access_token='x y', n=3)", "mine(root='a', access_token=***, n=3)"),
        ('mine(password="x", n=3)', "mine(password=***, n=3)"),
        ("mine(api_key = k, n=3)", "mine(api_key = ***, n=3)"),
        ("bce(pool='mean')", "bce(pool='mean')"),
    ],
)
def test_what_looks_like_a_password_is_masked(text, expected):
    assert without_secrets(text) == expected


def test_neither_the_shells_words_nor_its_variables_are_kept(tiny, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "very-secret")
    monkeypatch.setattr(sys, "argv", ["fedmlic", "run", "--token", "very-secret"])

    assert "very-secret" not in str(environment(*tiny()))


def test_the_commit_of_a_checkout_and_whether_it_was_changed(tmp_path):
    assert git_state(tmp_path) is None
    git(tmp_path, "init", "-q")
    assert git_state(tmp_path) is None, "there is no commit yet"
    (tmp_path / "a.py").write_text("a = 1\n")
    git(tmp_path, "add", "a.py")
    git(tmp_path, "commit", "-q", "-m", "first")

    clean = git_state(tmp_path)
    (tmp_path / "new.txt").write_text("not tracked")
    assert clean == git_state(tmp_path) == {"commit": git(tmp_path, "rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "a.py").write_text("a = 2\n")
    assert git_state(tmp_path) == {**clean, "dirty": True}
    (tmp_path / "below").mkdir()
    assert git_state(tmp_path / "below") is None, "the folder is not the top of the checkout"


def test_without_git_nothing_is_said(tmp_path, monkeypatch):
    (tmp_path / ".git").mkdir()
    monkeypatch.setattr(module.shutil, "which", lambda _: None)

    assert git_state(tmp_path) is None
    assert module._said("git") is None


def test_the_machine_is_described(tiny):
    found = environment(*tiny())

    assert found["cpu"] == cpu_model() != ""
    assert 1 <= found["usable_cpus"] <= found["cpus"]
    assert found["memory_bytes"] == memory_bytes() > 2**20
    assert found["gpus"] == module.gpu_names()
    assert found["packages"]["torch"].startswith("2.")
    assert set(found["packages"]) == set(module.PACKAGES)
