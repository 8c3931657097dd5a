//! Who decides what a crash leaves.

/// Decides between possibilities that a crash leaves open.
pub trait Chooser {
    /// A number below `options`. 0 is always what was durable before, `options - 1` what was written last.
    fn choose(&mut self, options: usize) -> usize;
}

impl<F: FnMut(usize) -> usize> Chooser for F {
    fn choose(&mut self, options: usize) -> usize {
        self(options)
    }
}

/// Pseudo-random numbers from a seed.
#[derive(Debug, Clone)]
pub struct Random {
    state: u64,
}

impl Random {
    /// The numbers that belong to `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Random { state: seed }
    }

    /// The next number (splitmix64).
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next_u64() % bound
    }
}

impl Chooser for Random {
    fn choose(&mut self, options: usize) -> usize {
        usize::try_from(self.below(options as u64)).expect("below a usize")
    }
}

/// Goes through all possibilities, one crash after the other: an odometer whose wheels are found on the way.
#[derive(Debug, Default)]
pub struct Enumerator {
    /// (chosen, options) of each decision.
    wheels: Vec<(usize, usize)>,
    at: usize,
}

impl Enumerator {
    /// Begins with what was durable.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Turns to the next possibility; `false`: that was the last. Call it after each crash.
    pub fn advance(&mut self) -> bool {
        self.wheels.truncate(self.at);
        self.at = 0;
        while let Some((chosen, options)) = self.wheels.pop() {
            if chosen + 1 < options {
                self.wheels.push((chosen + 1, options));
                return true;
            }
        }
        false
    }
}

impl Chooser for Enumerator {
    fn choose(&mut self, options: usize) -> usize {
        if self.at == self.wheels.len() {
            self.wheels.push((0, options));
        }
        let (chosen, known) = self.wheels[self.at];
        assert_eq!(known, options, "the same crash asks the same questions");
        self.at += 1;
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_enumerator_visits_everything_once() {
        let mut all = Vec::new();
        let mut enumerator = Enumerator::new();
        loop {
            let first = enumerator.choose(2);
            // The second question depends on the first answer.
            let second = if first == 0 {
                enumerator.choose(3)
            } else {
                enumerator.choose(2)
            };
            all.push((first, second));
            if !enumerator.advance() {
                break;
            }
        }
        assert_eq!(all, [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]);
    }
}
