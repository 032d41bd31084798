"""S3 goes away, is busy, or no longer knows us; the run waits, or ends and goes on later."""

import time

import pytest

from tests.faults.conftest import NewCase
from tests.faults.harness import ONE_ENGINE
from tests.faults.proxy import EXPIRED, ONE_IN_FIVE_BUSY, FaultProxy
from tests.s3 import S3Server

OUTAGE_SECONDS = 5


@pytest.mark.long
def test_server_that_is_killed_and_comes_back_is_waited_for(
    new_case: NewCase, s3_server: S3Server
) -> None:
    case = new_case(
        "S3 server killed, back after some seconds", sizes=[40, 40], server=s3_server,
        engine=ONE_ENGINE,
    )  # fmt: skip
    driver = case.start()
    driver.must_reach(case.progress(), "a block")
    case.remember()
    try:
        s3_server.kill()
        time.sleep(OUTAGE_SECONDS)
    finally:
        s3_server.start()
    case.finish(driver)
    case.check()


def test_server_that_is_busy_one_time_in_five(new_case: NewCase, s3_server: S3Server) -> None:
    with FaultProxy(s3_server.endpoint) as proxy:
        case = new_case(
            "S3 answers one request in five with 503",
            sizes=[30],
            server=s3_server,
            endpoint=proxy.endpoint,
            engine=ONE_ENGINE,
        )
        proxy.fault = ONE_IN_FIVE_BUSY
        case.finish()
        assert proxy.refused, "no request was refused, so this shows nothing"
    case.check()


@pytest.mark.long
def test_credentials_that_expire_end_the_run_with_one_message(
    new_case: NewCase, s3_server: S3Server
) -> None:
    with FaultProxy(s3_server.endpoint) as proxy:
        case = new_case(
            "S3 credentials expire midway",
            sizes=[40, 40],
            server=s3_server,
            endpoint=proxy.endpoint,
            engine=ONE_ENGINE,
        )
        driver = case.start()
        driver.must_reach(case.progress(), "a block")
        case.remember()
        proxy.fault = EXPIRED
        assert driver.wait() in (1, 2), driver.told()
        errors = [line for line in driver.printed.splitlines() if line.startswith("error:")]
        assert len(errors) == 1, driver.told()
        assert "credentials" in errors[0], driver.told()
        assert "Traceback" not in driver.printed, driver.told()
        proxy.fault = None
        case.finish()
    case.check()
