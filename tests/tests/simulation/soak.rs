//! Random programs under random faults, many seeds.

use windlass_tests::soak::soak;

/// How many seeds: `WINDLASS_SEEDS=n` for more or fewer, `WINDLASS_SEED=n` for that one alone.
#[test]
fn no_seed_breaks_a_guarantee() {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seeds = match number("WINDLASS_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("WINDLASS_SEEDS").unwrap_or(300),
    };
    let (mut total, count) = (windlass_tests::sim::Tally::new(), seeds.end - seeds.start);
    for seed in seeds {
        for (what, times) in soak(seed).0 {
            *total.entry(what).or_default() += times;
        }
    }
    eprintln!("{count} seeds: {total:?}");
    if count >= 200 {
        // The faults must be felt, or the run shows nothing.
        for what in ["acquired", "waited", "lost", "timeouts", "retries", "given up", "upgraded", "handed on"]
        {
            assert!(total.get(what).is_some_and(|times| *times >= 20), "{what} hardly happened: {total:?}");
        }
    }
}

#[test]
fn one_seed_is_one_run() {
    for seed in [3, 1415, 92653] {
        let (first, second) = (soak(seed), soak(seed));
        assert_eq!(first, second, "seed {seed} does not replay");
    }
}
