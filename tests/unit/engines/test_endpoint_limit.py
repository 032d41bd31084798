"""How many requests a server gets at a time, on a clock of the test's."""

from pipeline.engines.endpoint_limit import FIRST_LIMIT, LATE_SECONDS, RequestLimit


def full(limit: RequestLimit, now: float, seconds: float = 0.1) -> None:
    """A request of a server that is full has begun."""
    limit.begun(now - seconds, now, limit.value)


def test_limit_grows_by_one_with_each_request_until_the_first_congestion() -> None:
    limit = RequestLimit(64)
    assert limit.value == FIRST_LIMIT
    for number in range(100):
        full(limit, float(number))
    assert limit.value == 64


def test_limit_does_not_grow_where_it_is_not_reached() -> None:
    limit = RequestLimit(64)
    for number in range(100):
        limit.begun(number - 0.1, float(number), FIRST_LIMIT - 1)
    assert limit.value == FIRST_LIMIT


def test_limit_is_halved_once_for_requests_of_one_time_and_then_grows_with_time() -> None:
    limit = RequestLimit(64)
    for _ in range(10):
        limit.congested(sent=1.0, now=2.0)
    assert limit.value == FIRST_LIMIT // 2
    limit.grow(limit.value)
    assert limit.value == FIRST_LIMIT // 2, "no request has begun since"
    for number in range(100):
        full(limit, 3.0 + number)
    limit.grow(limit.value - 1)
    assert limit.value == FIRST_LIMIT // 2, "it is not reached"
    for _ in range(3):
        limit.grow(limit.value)
    assert limit.value == FIRST_LIMIT // 2 + 1
    limit.congested(sent=200.0, now=201.0)
    limit.grow(limit.value)
    assert limit.value == 4


def test_limit_stays_above_zero_and_below_the_slots() -> None:
    limit = RequestLimit(3)
    assert limit.value == 3
    for number in range(10):
        limit.congested(sent=2.0 * number, now=2.0 * number + 1)
    assert limit.value == 1
    for number in range(100):
        full(limit, 100.0 + number)
        limit.grow(limit.value)
    assert limit.value == 3


def test_late_first_token_halves_the_limit_and_a_slow_server_is_not_late() -> None:
    limit = RequestLimit(64)
    full(limit, 10.0)
    full(limit, 50.0, seconds=LATE_SECONDS + 1)
    assert limit.value == (FIRST_LIMIT + 1) // 2
    slow = RequestLimit(64)
    for number in range(5):
        full(slow, 100.0 * number, seconds=30.0)
    assert slow.value == FIRST_LIMIT + 5
    full(slow, 1000.0, seconds=200.0)
    assert slow.value == (FIRST_LIMIT + 5) // 2
