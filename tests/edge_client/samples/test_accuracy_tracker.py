"""What a device knows of its answers' accuracy, by version."""

from pathlib import Path

from edge_client.samples.accuracy import AccuracyTracker


def test_versions_are_compared_on_the_held_out_segments_that_both_have_answered(
    tmp_path: Path,
) -> None:
    board = AccuracyTracker(tmp_path / "board.json")
    for at, first in enumerate((True, False, False, True)):
        board.count("1-a", at, first, held_out=True)
    for at, after in ((1, True), (2, False), (3, True), (9, True)):
        board.count("2-b", at, after, held_out=True)
    board.count("2-b", 20, True, held_out=False)
    board.save()
    for each in (board, AccuracyTracker(tmp_path / "board.json")):
        first, after = each.scores()["1-a"], each.scores()["2-b"]
        assert (first.paired, first.held_out, first.held_out_correct) == (4, 4, 2)
        assert (after.held_out, after.held_out_correct, after.labelled) == (4, 3, 5)
        assert (after.paired, after.paired_correct, after.paired_base_correct) == (3, 2, 1)
