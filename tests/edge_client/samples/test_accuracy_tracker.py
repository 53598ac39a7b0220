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


def test_the_errors_of_numbers_are_added_up_and_survive_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "board.json"
    board = AccuracyTracker(path, "rmse")
    for at, error in ((0, 9.0), (1, 16.0), (2, 0.0)):
        board.count("1-a", at, error < 1, held_out=at < 2, error=error)
    board.count("2-b", 1, True, held_out=True, error=4.0)
    board.save()
    for each in (board, AccuracyTracker(path, "rmse")):
        first, after = each.scores()["1-a"], each.scores()["2-b"]
        assert first.of_labelled == (25 / 3) ** 0.5
        assert first.of_held_out == (25 / 2) ** 0.5
        assert after.of_paired == (4.0, 2.0)
        assert (first.metric, first.correct, first.held_out_correct) == ("rmse", 1, 0)


def test_a_file_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    path = tmp_path / "board.json"
    path.write_text('{"counts": {"1-a": [3, 2, 1]}, "held_out": {"1-a": {"5": true, "6": false}}}')
    found = AccuracyTracker(path).scores()["1-a"]
    assert (found.of_labelled, found.of_held_out, found.held_out) == (0.5, 0.5, 2)
