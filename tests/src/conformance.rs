//! The suite that every backend passes: plain functions over a [`Place`], one a guarantee. The first lists ask the backend
//! itself, those that begin with `locker` ask through the public API.
//!
//! What a backend says it cannot do is not left out: the same function then checks that asking for it is refused.

use windlass::{Backend, ErrorKind, Mode, ask::Entry};

use crate::place::{Place, ask, claim, permit};

pub mod changing;
pub mod exclusion;
pub mod giving_up;
pub mod keeping;
pub mod locker_acquiring;
pub mod locker_closing;
pub mod locker_holding;
pub mod locker_losing;
pub mod locker_seeing;
pub mod locker_sharing;
pub mod names;
pub mod once;
pub mod order;
pub mod seeing;
pub mod several;
pub mod taking;
pub mod tokens;

/// Makes a test of each function of the suite: `conformance!(start)`, where `start()` gives a new place.
#[macro_export]
macro_rules! conformance {
    ($start:ident) => {
        $crate::conformance_list! { $start
            exclusion: exclusive_excludes, modes_fit_as_the_matrix_says, permits_up_to_the_limit,
                the_smallest_limit_counts, permits_and_others_exclude_each_other, one_counter_many_clients,
                readers_and_writers_never_overlap, unsupported_modes_are_refused;
            order: first_come_first_served, a_waiting_exclusive_holds_back_later_shared,
                neighbouring_shared_enter_together, a_try_takes_only_if_nobody_waits, a_failed_try_leaves_no_place,
                permits_come_in_order, one_who_waits_is_told_for_whom, a_release_wakes_one,
                a_wide_permit_does_not_overtake;
            once: asked_again_while_held, asked_again_through_another_client, asked_again_while_waiting,
                asked_again_keeps_the_place, released_twice, unknown_claims_are_released,
                another_claim_cannot_release, many_released_in_one, renewed_each_by_each, renewal_keeps_the_grant,
                renewed_twice_at_once_through_another_client;
            giving_up: a_dropped_waiter_is_gone, a_dropped_head_lets_the_next_in, dropped_at_every_poll_when_free,
                dropped_at_every_poll_when_held, dropped_at_every_poll_when_released_meanwhile,
                all_dropped_at_every_poll, a_drop_races_with_the_grant, released_while_waiting;
            tokens: grow_over_grants, grow_across_modes, grow_over_clients, grow_when_taken,
                grow_in_the_order_of_the_grants;
            changing: downgrade_lets_shared_in, downgrade_keeps_the_order, upgrade_waits_for_the_others,
                upgrade_alone_is_immediate, upgrade_called_off, upgrade_dropped_at_every_poll,
                upgrade_goes_before_the_queue, a_second_upgradable_waits, upgradable_becomes_shared,
                what_is_not_held_cannot_change, what_does_not_fit_is_refused;
            taking: steal_takes_it, steal_goes_before_the_queue, steal_takes_it_from_all, steal_of_a_free_lock,
                force_release_takes_it_from_all, force_release_by_token, force_release_lets_the_next_in,
                force_release_of_nothing, release_tells_of_a_loss, the_robbed_cannot_release;
            seeing: contended_is_heard_once_by_the_holder, lost_is_heard_by_its_own_client_only,
                news_wait_for_the_ear, holders_and_waiters_are_seen, a_prefix_is_a_prefix_of_the_text,
                who_is_gone_is_seen_to_be,
                a_watch_before_a_look_misses_nothing, url_has_no_secret;
            several: all_are_granted, none_when_one_is_taken, waits_for_all, asked_again, opposite_orders,
                a_queue_of_several;
            names: odd_names_are_names, prefixes_are_other_locks, the_longest_name;
            locker_acquiring: a_guard_holds, timeout_says_who_holds_it, timeout_of_zero, try_acquire_does_not_wait,
                invalid_names_are_refused, contradictions_are_refused, what_cannot_be_done_is_refused,
                on_wait_wraps_the_wait, random_delay_is_spent_holding, lock_all_in_any_order,
                lock_all_gives_guards_in_order, lock_all_none, a_dropped_acquire_leaves_nothing, errors_say_where,
                a_timeout_names_what_was_asked_for, a_panic_in_on_acquired_leaves_nothing;
            locker_closing: closed_is_closed, those_who_wait_are_refused,
                a_grant_that_nobody_has_seen_is_given_back, a_grant_races_with_the_close,
                what_was_given_up_before_is_gone;
            locker_holding: dropping_releases, release_is_final, hold_at_least_outlives_the_release,
                downgrade_and_upgrade, upgrade_times_out, run_gives_the_output, detached_and_attached,
                attached_in_another_locker, a_ticket_is_for_one_guard, detached_is_not_released,
                a_wrong_ticket_is_refused, a_claim_lives_longer_than_its_ttl;
            locker_losing: stolen_is_told_once, forced_is_told_once, release_of_a_lost_lock_says_so,
                run_is_dropped_on_loss, max_hold_signals_then_ends, a_panic_in_a_callback_harms_nobody,
                a_loss_harms_one_guard_only;
            locker_seeing: list_shows_holders_and_waiters, watch_shows_each_change, contended_is_told,
                metrics_count, metadata_is_shown, owners_are_told, no_secret_in_text;
            locker_sharing: tasks_share_a_counter, threads_share_a_counter, a_semaphore_lets_in_its_limit,
                a_guard_goes_to_another_thread, readers_do_not_starve_a_writer, many_names_at_once,
                cancelled_at_random;
        }
        $crate::conformance_side_by_side! { $start
            keeping: a_kept_place_waits_for_its_ticket, a_turn_waits_for_its_ticket, a_turn_that_nobody_takes_is_the_next_ones,
                a_place_that_is_gone_is_another, a_kept_place_is_released, a_detached_claim_is_released, a_ticket_that_a_guard_has,
                what_keeps_no_place_is_refused;
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! conformance_list {
    ($start:ident $($module:ident: $($test:ident),*;)*) => {
        $(mod $module {
            $(#[test]
            fn $test() {
                $crate::place::check(super::$start(), |place| {
                    ::std::boxed::Box::pin($crate::conformance::$module::$test(place))
                });
            })*
        })*
    };
}

/// Those that do little but wait: all at once, as one test.
#[doc(hidden)]
#[macro_export]
macro_rules! conformance_side_by_side {
    ($start:ident $module:ident: $($test:ident),*;) => {
        mod $module {
            #[test]
            fn side_by_side() {
                ::std::thread::scope(|scope| {
                    $(scope.spawn(|| {
                        $crate::place::check(super::$start(), |place| {
                            ::std::boxed::Box::pin($crate::conformance::$module::$test(place))
                        });
                    });)*
                });
            }
        }
    };
}

/// Whether the backend can do it. If it says no, asking for it must be refused.
async fn can_share(place: &dyn Place, client: &dyn Backend) -> bool {
    client.capabilities().shared || refused(place, client, Mode::Shared, Entry::Queue).await
}

async fn can_permit(place: &dyn Place, client: &dyn Backend) -> bool {
    client.capabilities().permit || refused(place, client, permit(2), Entry::Queue).await
}

async fn can_upgrade(place: &dyn Place, client: &dyn Backend) -> bool {
    client.capabilities().upgrade || refused(place, client, Mode::Upgradable, Entry::Queue).await
}

async fn can_steal(place: &dyn Place, client: &dyn Backend) -> bool {
    client.capabilities().steal || refused(place, client, Mode::Exclusive, Entry::Steal).await
}

async fn can_downgrade(place: &dyn Place, client: &dyn Backend) -> bool {
    if client.capabilities().downgrade {
        return true;
    }
    let held = ask("no-downgrade", Mode::Exclusive);
    place.take(client, &held).await;
    let error = place.soon("a refusal", client.change(&claim(&held), Mode::Shared)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    place.give_back(client, &[&held]).await;
    false
}

async fn can_force_release(place: &dyn Place, client: &dyn Backend) -> bool {
    if client.capabilities().force_release {
        return true;
    }
    let name = "no-force".parse().unwrap();
    let error = place.soon("a refusal", client.force_release(&name, None)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    false
}

/// Who holds and who waits, and whether somebody does.
async fn can_see(place: &dyn Place, client: &dyn Backend) -> bool {
    if client.capabilities().see {
        return true;
    }
    let error = place.soon("a refusal", client.inspect("")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    let watch = place.soon("a refusal", client.changes("")).await;
    assert_eq!(watch.err().map(|error| error.kind()), Some(ErrorKind::Unsupported));
    false
}

async fn can_fence(place: &dyn Place, client: &dyn Backend) -> bool {
    if client.capabilities().fencing_token {
        return true;
    }
    let held = ask("no-token", Mode::Exclusive);
    assert_eq!(place.take(client, &held).await.fencing_token, 0);
    place.give_back(client, &[&held]).await;
    false
}

async fn refused(place: &dyn Place, client: &dyn Backend, mode: Mode, entry: Entry) -> bool {
    let mut ask = ask("unsupported", mode);
    ask.entry = entry;
    let error = place.soon("a refusal", client.acquire(&ask, &|_| {})).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    false
}
