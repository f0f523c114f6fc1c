"""What a sweep hears of the processes that play its runs."""

import multiprocessing

import pytest

from sim.sweep.players import Order, Report, _Process, _received


class Ended:
    """A process that was killed."""

    exitcode = -9

    def join(self, seconds):
        pass


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        (["round", "ended"], ["round", "ended"]),
        (["round"], ["round", "died"]),
        (["failed"], ["failed"]),
        ([], ["died"]),
    ],
)
def test_a_run_ends_once_also_where_its_process_dies_a_moment_later(said, heard):
    ours, theirs = multiprocessing.Pipe()
    for kind in said:
        theirs.send(Report("run", kind, {}))
    theirs.close()
    player = _Process(0, Order("run", {}, "folder"), Ended(), ours)

    assert [report.kind for report in _received(player)] == heard
    assert (player.order, player.pipe) == (None, None)
