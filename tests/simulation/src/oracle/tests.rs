//! What the oracle allows and what not, by hand.

use super::*;

const V: Lineage = Lineage(1);

fn volume() -> Oracle {
    let mut oracle = Oracle::default();
    let thing = Thing::new("v".parse().unwrap(), None, Content::zeros(2));
    oracle.change_started(V, After::Is(thing));
    oracle.change_acknowledged(V);
    oracle
}

fn check(oracle: &Oracle, crash: Option<Crash>, good: &[Value], bad: &[Value]) {
    let check = |value: Value| {
        let mut oracle = oracle.clone();
        if let Some(crash) = crash {
            oracle.crash(crash);
        }
        let since = oracle.now();
        oracle.check(V, &[value, 0], since)
    };
    for value in good {
        assert_eq!(check(*value), Ok(()), "{value} {crash:?}");
    }
    for value in bad {
        assert!(check(*value).is_err(), "{value} {crash:?}");
    }
}

fn read(oracle: &mut Oracle, value: Value, crash: Option<Crash>) {
    if let Some(crash) = crash {
        oracle.crash(crash);
    }
    let since = oracle.now();
    assert_eq!(oracle.check(V, &[value, 0], since), Ok(()));
}

#[test]
fn acknowledged_writes_survive_kills_and_flushed_ones_power_cuts() {
    let mut oracle = volume();
    let seven = oracle.write_started(V, 0..1, 7);
    check(&oracle, None, &[0, 7], &[8]);
    oracle.write_ended(V, 0..1, seven, true);
    check(&oracle, Some(Crash::Kill), &[7], &[0]);
    check(&oracle, Some(Crash::PowerCut), &[0, 7], &[8]);
    let submitted = oracle.now();
    let eight = oracle.write_started(V, 0..1, 8);
    oracle.write_ended(V, 0..1, eight, true);
    oracle.flush_acknowledged(V, submitted);
    check(&oracle, None, &[8], &[7, 0]);
    check(&oracle, Some(Crash::PowerCut), &[7, 8], &[0]);
}

#[test]
fn a_hole_reads_as_zeros_unless_a_write_came_in_between() {
    let mut oracle = volume();
    let check = |oracle: &Oracle, value, since| {
        oracle
            .check_holes(V, &[true, false], &[value, value], since)
            .is_ok()
    };
    let before = oracle.now();
    let seven = oracle.write_started(V, 0..1, 7);
    assert!(check(&oracle, 0, before) && check(&oracle, 7, before));
    oracle.write_ended(V, 0..1, seven, true);
    let after = oracle.now();
    assert!(check(&oracle, 7, before), "it ended after the status began");
    assert!(!check(&oracle, 7, after));
    oracle.write_started(V, 0..1, 8);
    assert!(check(&oracle, 8, after), "it is in flight");
    oracle.crash(Crash::Kill);
    assert!(!check(&oracle, 8, after), "nobody writes any more");
}

#[test]
fn writes_that_meet_happen_in_either_order_and_then_stay() {
    let mut oracle = volume();
    let seven = oracle.write_started(V, 0..1, 7);
    let eight = oracle.write_started(V, 0..1, 8);
    oracle.write_ended(V, 0..1, seven, true);
    oracle.write_ended(V, 0..1, eight, true);
    check(&oracle, None, &[7, 8], &[0]);
    let mut seen = oracle.clone();
    read(&mut seen, 7, None);
    check(&seen, None, &[7], &[8]);
    check(&seen, Some(Crash::PowerCut), &[0, 7, 8], &[]);
    let submitted = seen.now();
    seen.flush_acknowledged(V, submitted);
    check(&seen, Some(Crash::PowerCut), &[7], &[8]);
    let submitted = oracle.now();
    oracle.flush_acknowledged(V, submitted);
    check(&oracle, Some(Crash::PowerCut), &[7, 8], &[0]);
}

#[test]
fn what_was_read_after_a_crash_stays() {
    let mut oracle = volume();
    oracle.write_started(V, 0..1, 7);
    let mut kept = oracle.clone();
    read(&mut kept, 7, Some(Crash::PowerCut));
    check(&kept, Some(Crash::PowerCut), &[7], &[0]);
    read(&mut oracle, 0, Some(Crash::PowerCut));
    check(&oracle, None, &[0], &[7]);
}

#[test]
fn a_crash_during_a_recovery_counts_for_what_was_not_read() {
    let mut oracle = volume();
    let seven = oracle.write_started(V, 0..1, 7);
    oracle.write_ended(V, 0..1, seven, true);
    oracle.crash(Crash::PowerCut);
    check(&oracle, Some(Crash::Kill), &[0, 7], &[]);
}

#[test]
fn a_failed_sync_excuses_nothing_until_it_was_told() {
    let mut oracle = volume();
    let seven = oracle.write_started(V, 0..1, 7);
    oracle.write_ended(V, 0..1, seven, true);
    oracle.sync_in_doubt(None);
    check(&oracle, None, &[0, 7], &[]);
    let mut silent = oracle.clone();
    let submitted = silent.now();
    silent.flush_acknowledged(V, submitted);
    check(&silent, None, &[7], &[0]);
    oracle.sync_failed(V);
    read(&mut oracle, 0, None);
    check(&oracle, None, &[0], &[7]);
}

#[test]
fn a_change_under_way_has_happened_or_not_and_others_have() {
    let mut oracle = volume();
    let renamed: Name = "w".parse().unwrap();
    oracle.change_started(V, After::Named(renamed.clone()));
    let old = BTreeMap::from([(V, ("v".parse().unwrap(), 2))]);
    let new = BTreeMap::from([(V, (renamed, 2))]);
    assert_eq!(oracle.clone().names_are(&old), Ok(()));
    assert_eq!(oracle.clone().names_are(&new), Ok(()));
    oracle.change_acknowledged(V);
    assert!(oracle.clone().names_are(&old).is_err());
    oracle.change_started(V, After::Gone);
    assert_eq!(oracle.clone().names_are(&BTreeMap::new()), Ok(()));
    assert_eq!(oracle.names_are(&new), Ok(()));
}
