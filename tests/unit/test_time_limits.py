"""Which time limit must be shorter than which, and why."""

from jobs.nightly import SLURM_NOTICE_SECONDS
from pipeline import time_limits as t
from pipeline.engines.protocol import TOKENS_A_REPORT
from pipeline.execution.cluster import MODEL_LOAD_SECONDS, SLOWEST_TOKENS_PER_SECOND


def test_driver_that_gets_sigterm_has_left_ray_before_sigkill() -> None:
    leaves = t.DRIVER_SAVE_SECONDS + t.CALL_SECONDS
    assert leaves + t.NOTIFY_STOPPED_SECONDS < t.GRACE_SECONDS


def test_actor_that_gets_sigterm_has_saved_and_closed_before_sigkill() -> None:
    assert t.ENGINE_SAVE_SECONDS + t.ENGINE_CLOSE_SECONDS < t.GRACE_SECONDS


def test_driver_waits_for_engines_that_use_all_their_time_to_save() -> None:
    assert t.REPORT_SECONDS + t.ENGINE_SAVE_SECONDS < t.DRIVER_SAVE_SECONDS


def test_driver_waits_for_engines_that_use_all_their_time_to_close() -> None:
    assert t.ENGINE_CLOSE_SECONDS + t.CALL_SECONDS < t.DRIVER_CLOSE_SECONDS


def test_engine_on_a_node_that_ends_has_saved_before_the_shortest_spot_notice_is_over() -> None:
    told = t.NODES_LOOK_SECONDS + t.REPORT_SECONDS
    assert told + t.ENGINE_SAVE_SECONDS < t.GRACE_SECONDS


def test_run_that_reaches_a_limit_ends_before_its_scheduler_ends_it() -> None:
    assert t.DRIVER_SAVE_SECONDS + t.DRIVER_CLOSE_SECONDS < t.LIMIT_NOTICE_SECONDS


def test_driver_that_gets_slurms_notice_has_ended_before_the_job() -> None:
    assert t.DRIVER_SAVE_SECONDS + t.DRIVER_CLOSE_SECONDS < SLURM_NOTICE_SECONDS


def test_engine_that_misses_some_reports_still_lives() -> None:
    assert 4 * t.REPORT_SECONDS < t.LIVING_SECONDS


def test_engine_is_not_counted_as_gone_while_it_counts_as_living() -> None:
    assert t.LIVING_SECONDS < t.SILENT_SECONDS


def test_silent_engine_is_noticed_while_the_driver_waits_for_it() -> None:
    assert t.SILENT_SECONDS < t.DRIVER_SAVE_SECONDS
    assert t.SILENT_SECONDS < t.DRIVER_CLOSE_SECONDS


def test_busy_coordinator_storage_or_lease_is_not_taken_for_a_hung_engine() -> None:
    assert 10 * t.HUNG_LOOK_SECONDS < t.HUNG_SECONDS
    assert 10 * t.SILENT_SECONDS < t.HUNG_SECONDS
    assert 5 * t.LEASE_EXPIRE_SECONDS < t.HUNG_SECONDS


def test_servers_that_are_silent_and_then_down_are_not_taken_for_a_hung_engine() -> None:
    silent = t.SERVER_SILENT_SECONDS + t.SERVER_CONNECT_SECONDS
    assert silent + t.SERVERS_DOWN_SECONDS + t.HUNG_LOOK_SECONDS < t.HUNG_SECONDS


def test_slowest_engine_that_a_run_waits_for_is_not_taken_for_a_hung_one() -> None:
    assert 10 * TOKENS_A_REPORT / SLOWEST_TOKENS_PER_SECOND < t.HUNG_SECONDS


def test_hung_engine_is_replaced_before_ray_data_ends_the_run() -> None:
    assert t.HUNG_SECONDS < t.HUNG_ALONE_SECONDS < MODEL_LOAD_SECONDS


def test_follower_ends_after_a_call_that_gets_no_answer() -> None:
    assert t.CALL_SECONDS < t.FOLLOWER_JOIN_SECONDS


def test_figures_stay_fresh_when_a_line_is_late() -> None:
    assert 2 * t.LINE_SECONDS < t.FRESH_SECONDS


def test_lease_survives_renewals_that_fail() -> None:
    assert 5 * t.LEASE_RENEW_SECONDS < t.LEASE_EXPIRE_SECONDS


def test_newcomer_sees_each_renewal() -> None:
    assert 2 * t.LEASE_LOOK_SECONDS < t.LEASE_RENEW_SECONDS


def test_driver_that_ends_in_good_time_never_loses_its_lease() -> None:
    assert t.GRACE_SECONDS + t.LEASE_RENEW_SECONDS < t.LEASE_EXPIRE_SECONDS
    assert t.DRIVER_CLOSE_SECONDS + t.LEASE_RENEW_SECONDS < t.LEASE_EXPIRE_SECONDS
