"""Tests of one shell that have no partner of the same name in the other, and why. See `test_partners`.

An entry of a file stands for all of its tests that have no partner.
"""

from __future__ import annotations

ALL = ""
"""Instead of names: whatever test of the file has no partner."""

Entries = dict[str, dict[str, str]]
"""Why, then by file the names."""

AIO: Entries = {
    "It serves both shells and knows nothing of calls: `lb.sync` runs it in its background loop.": {
        "resolvers/test_consul.py": ALL,
        "resolvers/test_dns_and_static.py": ALL,
        "test_consul.py": ALL,
        "test_consul_acl.py": ALL,
        "test_consul_redirects.py": ALL,
        "test_consul_settings.py": ALL,
        "test_registration.py": ALL,
        "test_registration_leaving.py": ALL,
        "test_stalls.py": """
            test_a_cancellation_is_not_a_timeout test_a_timeout_counts_the_time_for_which_the_loop_ran
            test_consul_that_says_nothing_is_an_error_all_the_same
            test_consuls_answer_that_arrived_meanwhile_counts""",
    },
    "The loop carries it out for both: `lb.sync` hands it every stream, future, retry, hedge, wait and connection.": {
        "test_attempt_timeout.py": ALL,
        "test_connecting.py": ALL,
        "test_goaway.py": ALL,
        "test_goaway_frames.py": ALL,
        "test_health.py": ALL,
        "test_hedging.py": ALL,
        "test_idling.py": ALL,
        "test_limits.py": ALL,
        "test_resolver.py": ALL,
        "test_retries.py": ALL,
        "test_storm.py": ALL,
        "test_unseen.py": ALL,
        "test_words.py": ALL,
        "test_errors.py": """
            test_metadata_that_cannot_be_sent_wait_for_no_place test_metadata_that_cannot_be_sent_wait_for_nothing
            test_no_endpoint_reachable_fails_with_each_ones_reason test_nothing_resolved_fails_at_the_deadline""",
        "test_headers.py": """
            test_all_kinds_tell_headers_that_came_with_the_answer test_waiting_for_headers_costs_no_retry""",
        "test_life.py": "test_a_call_that_could_not_be_made_is_not_kept",
        "test_stalls.py": """
            test_a_deadline_that_passed_before_anything_was_sent test_a_silent_endpoint_is_still_found_out
            test_connections_stand_through_a_stall test_five_seconds_are_as_one
            test_hedges_wait_for_what_has_arrived test_slow_calls_are_those_of_endpoints""",
        "test_user_code.py": """
            test_a_strategy_that_raises_after_a_doubtful_end_is_told_in_the_log
            test_a_strategy_that_raises_is_told_in_the_log test_a_resolver_that_can_not_start_fails_every_call
            test_a_resolver_whose_start_is_a_coroutine_function_is_told test_a_resolver_that_says_something_else_is_told
            test_an_endpoint_named_twice_is_one test_the_resolver_does_not_live_in_the_first_calls_context""",
    },
    "The one balancer of `lb.core` decides it for both; in `lb.sync` a lock is around it.": {
        "test_breakers.py": ALL,
        "test_changes.py": ALL,
        "test_live_sets.py": ALL,
        "test_policies.py": ALL,
        "test_user_code.py": """
            test_a_wrong_policy_fails_every_call_at_once test_a_picker_that_keeps_what_is_gone_is_told
            test_the_smallest_policy_of_the_documentation_works""",
    },
    "`tests/shells` asks it of both; here grpcio's own channel is beside ours.": {
        "test_service_config.py": ALL,
    },
    "In threads, grpcio's own upper layer does it, which `lb.sync` keeps; in asyncio ours does.": {
        "test_conformance.py": """
            test_a_failure_after_some_messages test_a_message_that_is_too_large test_an_error_can_be_pickled_and_copied
            test_an_unused_multicallable_costs_nothing test_requests_from_any_iterable""",
        "test_conformance_arguments.py": """
            test_a_bad_compression_of_a_channel test_a_compression_that_the_server_refuses test_a_method_as_bytes
            test_a_method_that_nobody_has test_a_target_as_bytes test_a_target_that_is_no_text
            test_a_timeout_that_is_far test_an_odd_target test_empty_arguments_of_a_channel
            test_metadata_in_many_forms test_metadata_keys_that_core_refuses test_metadata_that_are_no_pairs
            test_positional_arguments_of_a_stream_of_requests test_the_callers_metadata_object_is_left_alone
            test_true_is_a_second test_what_grpc_itself_sends""",
        "test_conformance_calls.py": """
            test_call_credentials_that_fail test_calls_over_tls test_cancel_then_ask test_many_at_once
            test_requests_are_read_as_they_are_sent""",
        "test_conformance_life.py": """
            test_a_channel_is_no_value test_an_unused_channel_is_forgotten_quietly
            test_the_process_ends_after_an_address_that_is_none test_the_words_for_a_call
            test_two_channels_do_not_touch_each_other""",
        "test_errors.py": """
            test_an_interceptor_of_no_kind_is_refused_in_grpcios_words test_bad_options_are_what_they_are_in_grpcio
            test_call_credentials_need_a_secure_channel""",
        "test_user_code.py": """
            test_a_metadata_key_that_is_not_allowed_leaves_nothing_in_flight
            test_metadata_that_can_not_be_sent_leaves_nothing_in_flight""",
    },
    "The scope of lb/shared bounds the calls of both; tests/shared asks it.": {
        "test_incoming.py": """
            test_a_deadline_that_has_passed_reaches_no_server test_the_earlier_of_two_deadlines_holds
            test_what_is_detached_goes_on""",
    },
    "Interceptors of grpc.aio are coroutines and may return, keep or leave what those of threads cannot.": {
        "test_attempts.py": "test_attempts_under_an_interceptor_that_wraps_the_responses",
        "test_conformance_interceptors.py": ALL,
        "test_interceptors.py": ALL,
    },
    "Tasks and event loops exist only in asyncio.": {
        "test_cancel_anywhere.py": ALL,
        "test_wakeups.py": ALL,
        "test_cancellation.py": """
            test_a_call_cancelled_as_its_retry_begins_gives_it_back
            test_a_cancelled_call_is_not_retried_whatever_a_strategy_says
            test_a_reader_cancelled_before_the_headers_ends_the_writer_too""",
        "test_conformance.py": """
            test_awaiting_twice test_cancel_who_waits test_cancelled_by_the_server_is_an_error
            test_who_asks_for_the_status_may_be_cancelled""",
        "test_conformance_calls.py": """
            test_a_task_group test_an_iterator_that_raises_at_once test_awaiting_a_failed_call_again
            test_shielded test_the_status_without_the_response test_wait_for_around_a_call""",
        "test_conformance_life.py": """
            test_a_channel_in_each_of_many_loops test_a_forgotten_channel_leaves_nothing
            test_another_loop_is_told_at_once test_asyncio_run_twice_with_one_channel
            test_children_live_that_are_forked_while_no_call_runs
            test_grpcios_thread_is_known_by_its_name test_made_at_import_time
            test_made_at_import_time_and_used_by_asyncio_run test_uvloop""",
        "test_errors.py": """
            test_a_call_outside_of_any_loop_is_refused test_a_channel_that_is_closed_or_unused_may_be_closed_anywhere
            test_another_event_loop_is_told_apart""",
        "test_incoming.py": """
            test_a_scope_may_be_cancelled_in_another_thread test_a_stopped_server_cancels_too test_a_writing_handler
            test_after_cancellation_no_call_begins test_ended_calls_leave_nothing_in_the_scope""",
        "test_life.py": "test_a_channel_is_made_without_an_event_loop",
    },
    "A call of grpcio's threads has no read(), write(), done_writing() and wait_for_connection().": {
        "test_conformance_ends.py": ALL,
        "test_ends.py": ALL,
        "test_request_streams.py": ALL,
        "test_conformance.py": """
            test_a_failure_is_raised_by_every_read test_a_written_message_that_can_not_be_serialized test_ping_pong
            test_read_and_iteration_do_not_mix test_read_by_hand test_read_by_iteration test_wait_for_connection
            test_write_by_hand test_writing_does_not_mix_with_an_iterator test_writing_to_a_call_that_has_ended""",
        "test_conformance_calls.py": "test_wait_for_connection_of_a_call_that_fails test_writing_to_a_cancelled_call",
        "test_headers.py": """
            test_headers_arrive_before_anything_is_written test_wait_for_connection_raises_when_every_attempt_failed""",
    },
    "A channel of grpcio's threads is subscribed to, and has no get_state() and wait_for_state_change().": {
        "test_conformance.py": "test_the_state_of_the_channel",
        "test_conformance_connectivity.py": ALL,
        "test_life.py": """
            test_a_set_without_endpoints_is_a_failure_of_its_own test_channel_ready_connects_and_waits
            test_closing_wakes_who_waits_for_a_state test_leaving_idle_is_a_change_of_state
            test_states_follow_the_connections""",
    },
    "Closing takes a grace, and is awaited, in grpc.aio alone.": {
        "test_conformance_life.py": """
            test_a_grace_that_is_no_number test_a_negative_grace
            test_an_error_in_the_block_closes_the_channel_and_comes_out test_close_cancels_what_is_left
            test_close_lets_calls_end_within_the_grace""",
        "test_errors.py": "test_a_negative_grace_closes_nothing",
        "test_life.py": """
            test_a_close_that_was_cancelled_can_be_repeated test_close_with_grace_lets_calls_end
            test_two_channels_are_two""",
    },
    "The private names under grpc.aio are others than those under grpc.Channel.": {
        "test_names.py": ALL,
    },
}

SYNC: Entries = {
    "Several threads use a channel or a call.": {
        "test_attempt_timeout.py": "test_many_threads_are_watched_at_once",
        "test_conformance.py": """
            test_an_iterator_in_another_thread test_cancel_from_another_thread_while_iterating test_many_threads""",
        "test_conformance_channel.py": "test_requests_are_asked_for_in_a_thread",
        "test_idling.py": "test_calls_that_meet_its_falling_asleep",
        "test_life.py": """
            test_closing_while_calls_run test_one_thread_for_each_stream_of_requests test_two_hundred_endpoints""",
        "test_resilience.py": "test_a_resolver_of_ones_own test_threads_share_one_sequence",
    },
    "gevent patches threads.": {
        "test_gevent.py": ALL,
    },
    "In threads alone, messages of a committed stream go from the caller to core and back past the loop.": {
        "test_straight.py": ALL,
    },
    "Calls that block exist only in threads.": {
        "test_conformance.py": "test_a_done_callback_that_calls test_with_call",
        "test_conformance_channel.py": "test_close_cancels_blocking_calls",
        "test_life.py": """
            test_a_blocking_call_inside_a_loop test_children_live_that_are_forked_while_a_blocking_call_runs
            test_ctrl_c_ends_the_call_at_its_server
            test_ctrl_c_in_a_blocking_call test_ctrl_c_in_a_stream_delays_no_closing""",
        "test_resilience.py": """
            test_a_channel_that_is_closed_while_the_callers_thread_has_the_call
            test_closing_ends_calls_on_an_endpoint_that_left""",
    },
    "Futures, their time-outs and callbacks, subscriptions and intercept_channel are of grpcio's threads alone.": {
        "test_conformance.py": """
            test_a_result_that_takes_too_long test_a_single_threaded_stream_that_fails
            test_context_variables test_each_kind_as_a_call_object test_single_threaded_streams""",
        "test_conformance_channel.py": """
            test_a_subscriber_that_raises test_calls_from_a_done_callback_of_a_closed_channel
            test_intercept_channel test_interceptors_of_call_objects test_subscribers_at_close test_unsubscribe""",
        "test_life.py": "test_closing_between_two_watches",
    },
    "`lb.sync` has a loop and a thread of its own, in which no user's code waits.": {
        "test_connecting.py": "test_closing_does_not_wait_for_the_pause",
        "test_health.py": "test_closing_does_not_wait_for_a_watch",
        "test_life.py": """
            test_a_call_object_that_is_kept_delays_no_closing test_a_process_that_closes_nothing_ends
            test_a_process_that_watches_consul_ends test_asking_a_loop_that_has_ended
            test_both_kinds_of_channel_in_one_process
            test_descriptors test_grpcios_race_is_not_told
            test_the_loop_lives_as_long_as_any_channel test_waiting_in_the_librarys_thread""",
    },
    "A forked child may make channels for threads; for asyncio it may make none.": {
        "test_life.py": """
            test_a_new_channel_after_a_fork_while_a_call_runs test_a_new_channel_after_a_fork_while_no_call_runs
            test_a_new_channel_after_a_fork_with_all_closed test_who_forks_often_is_looked_after_once""",
    },
    "tests/shells asks it of both; here grpcio's own channel is beside ours.": {
        "test_conformance_channel.py": "test_targets",
    },
    "The private names under grpc.Channel are others than those under grpc.aio.": {
        "test_names.py": ALL,
    },
}

WITHIN_AIO = {
    "test_a_call_outlives_stub_and_channel": "test_a_stub_keeps_its_channel",
    "test_a_failed_call_object": "test_a_failure",
    "test_a_lost_server": "test_a_server_that_goes_and_comes_back",
    "test_a_pause_between_attempts_is_cut_short": "test_a_cancelled_call_leaves_nothing",
    "test_a_policy_that_reads_metadata": "test_calls_of_one_key_go_to_one_backend",
    "test_a_retry_of_a_future": "test_an_idempotent_call_goes_to_another_endpoint",
    "test_a_server_dies_under_load": "test_a_connection_cut_in_mid_call_is_retried_elsewhere",
    "test_a_stream_that_can_not_be_read": "test_a_response_that_can_not_be_read",
    "test_an_exception_in_the_handler": "test_every_code_comes_through",
    "test_attempts_under_interceptors": "test_attempts_under_an_interceptor_that_awaits_the_response",
    "test_calls_are_spread": "test_every_policy_serves_every_kind",
    "test_cancel_after_the_end": "test_the_final_status",
    "test_cancelling_reaches_the_calls_of_a_running_handler": "test_what_the_handler_spawned_is_cancelled",
    "test_channel_ready_future_of_nobody": "test_a_dead_server",
    "test_close_ends_what_waits_for_a_connection": "test_a_cancelled_call_leaves_nothing",
    "test_close_twice": "test_use_after_close",
    "test_close_without_use": "test_nothing_starts_before_the_first_use",
    "test_initial_metadata": "test_metadata_goes_both_ways",
    "test_iterating_a_cancelled_call": "test_reading_after_the_end",
    "test_metadata_without_a_value": "test_metadata_of_a_wrong_type",
    "test_no_call_is_left": "test_a_finished_call_is_freed_without_the_collector",
    "test_the_server_sees_a_cancellation": "test_cancel",
    "test_time_remaining": "test_before_during_and_after",
    "test_trailing_metadata": "test_metadata_goes_both_ways",
    "test_unknown_methods": "test_the_kind_of_function_stays",
    "test_wait_for_ready_waits": "test_without_a_server_a_call_fails_fast_or_waits",
}
"""Tests of `lb.sync` whose rule is asked of `lb.aio` within a test of another scope: that test."""

WITHIN_SYNC = {
    "test_a_deadline_that_has_passed": "test_a_timeout_that_has_passed",
    "test_attempts_of_what_is_no_call": "test_attempts_of_the_error_that_was_raised",
    "test_wait_for_ready_waits_where_others_fail": "test_wait_for_ready_waits",
    "test_without_a_deadline_there_is_none": "test_the_deadline_travels",
}
"""The other way round: tests of `lb.aio`, and the test of `lb.sync` that asks the same."""
