from edge_client.uplink.pacing import AFTER_WORK_S, AT_WORK_S, EVERY_S, Heartbeat


def test_news_are_sent_at_the_next_look() -> None:
    beat = Heartbeat()
    assert beat.looks(0.0)
    assert beat.due("running", 0.0)
    assert not beat.looks(0.5)
    assert beat.looks(1.0)
    assert not beat.due("running", 1.0)
    assert beat.looks(2.0)
    assert beat.due("training", 2.0)
    assert beat.looks(1.0 + EVERY_S)
    assert not beat.due("training", 1.0 + EVERY_S)
    assert beat.looks(2.0 + EVERY_S)
    assert beat.due("training", 2.0 + EVERY_S)  # as long after the last one
    beat.at_once()
    assert beat.looks(2.0 + EVERY_S)
    assert beat.due("training", 2.0 + EVERY_S)


def test_a_rate_limit_makes_them_rare() -> None:
    beat = Heartbeat()
    assert beat.looks(0.0)
    beat.pause(0.0, 60.0)
    assert not beat.looks(59.0)
    assert beat.interval_s == 60.0
    beat.at_once()
    assert beat.looks(59.0)


def test_at_work_there_is_one_a_second_and_for_a_while_afterwards() -> None:
    beat = Heartbeat()
    sent: dict[int, float] = {}
    for second in range(60):
        if second == 3:
            beat.work()
        if second == 20:
            beat.rest(20.0)
        if beat.looks(second) and beat.due(None, second):
            sent[second] = beat.interval_s
    quick = range(3, 20 + round(AFTER_WORK_S))
    usual = [quick.stop, quick.stop + 10, quick.stop + 20]
    assert sent == {0: EVERY_S} | dict.fromkeys(quick, AT_WORK_S) | dict.fromkeys(usual, EVERY_S)
