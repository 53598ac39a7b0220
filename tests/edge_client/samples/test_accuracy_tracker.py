"""What a device knows of its answers' accuracy, by version."""

from pathlib import Path

from edge_client.samples.accuracy import PLACES, AccuracyTracker


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


def stream(board: AccuracyTracker, model: str, places: range, wrong_every: int) -> None:
    for at in places:
        board.count(model, at * 1_000_000, at % wrong_every > 0, held_out=True)


def test_file_and_memory_do_not_grow_with_a_labelled_stream(tmp_path: Path) -> None:
    sizes = []
    for length in (4 * PLACES, 16 * PLACES):
        path = tmp_path / f"{length}.json"
        board = AccuracyTracker(path)
        stream(board, "1-a", range(10**9, 10**9 + length), 4)
        board.save()
        sizes.append(path.stat().st_size)
        found = AccuracyTracker(path).scores()["1-a"]
        assert (found.labelled, found.held_out) == (length, PLACES)
        assert found.of_held_out is not None
        assert abs(found.of_held_out - 3 / 4) < 0.05  # a sample of the whole stream, not its end
    assert abs(sizes[1] - sizes[0]) < sizes[0] / 100


def test_versions_that_saw_the_same_long_data_are_compared_on_the_same_places(
    tmp_path: Path,
) -> None:
    board = AccuracyTracker(tmp_path / "board.json")
    stream(board, "1-a", range(4 * PLACES), 2)
    stream(board, "2-b", range(4 * PLACES), 4)
    after = board.scores()["2-b"]
    assert after.paired == PLACES
    before, now = after.of_paired
    assert before is not None
    assert now is not None
    assert abs(before - 1 / 2) < 0.05
    assert abs(now - 3 / 4) < 0.05
