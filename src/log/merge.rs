//! The numbers of many events in one order, at a cost that is linear in them and in what they are divided into.
//!
//! The events of a read are known in strands, each in the order of its numbers or short: a transaction's are, and so is a
//! [strip](super::strips) of a room's. Between two strands there is no order that an index knows. So what is known is
//! given out up to the number beyond which some strand may have more. Then those are asked that stand there or close to it,
//! the fewer they are the more at once. Each question to a strand either brings many numbers or is the last one.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap},
};

/// Numbers that one statement brings, at most: 512 KiB on the wire.
const FETCH_MAX: usize = 32_768;

/// Numbers that a transaction is asked for at once, at least. Most have fewer events, and are never asked again.
const EACH_MIN: usize = 8;

/// The next events of each of these transactions. `$1`: transactions, `$2`: behind which number, `$3`: rows of each at most.
/// The place of a transaction in the list comes with each number.
pub const NUMBERS: &str = "
    select log.epoch, log.floor, found.nths, found.seqs
    from crewcast.log
    cross join (select coalesce(array_agg(key.nth), '{}') as nths, coalesce(array_agg(key.seq), '{}') as seqs
                from (select open.nth, key.seq
                      from unnest($1::bigint[], $2::bigint[]) with ordinality as open (xact, after, nth)
                      cross join lateral (select seq from crewcast.events
                                          where xact = open.xact and seq > open.after
                                          order by seq limit $3) as key) as key) as found";

/// A merge under way.
#[derive(Debug)]
pub(super) struct Merge {
    /// The strands that may have more numbers than are known, by the number up to which those are known.
    open: BTreeSet<(i64, i64)>,
    /// Numbers that are known and were not given out; more than once, if several strands have them.
    known: BinaryHeap<Reverse<i64>>,
    /// The number that was given out last.
    last: i64,
    sizes: Sizes,
}

/// How many numbers a strand has.
#[derive(Debug)]
enum Sizes {
    /// Nobody knows: so many are asked for at least, and of all together so many at most.
    Unknown(usize, usize),
    /// So many. All of them are asked for at once.
    Known(Vec<usize>),
}

/// What is to be asked.
#[derive(Debug)]
pub(super) struct Question {
    /// The strands.
    pub(super) strands: Vec<i64>,
    /// Behind which number, each.
    pub(super) afters: Vec<i64>,
    /// For how many numbers of each.
    pub(super) each: i64,
}

impl Merge {
    /// The events of these transactions behind `after`.
    pub(super) fn of_transactions(xacts: &[i64], after: i64) -> Self {
        Self::new(xacts.iter().map(|xact| (after, *xact)).collect(), Sizes::Unknown(EACH_MIN, FETCH_MAX))
    }

    /// Of strips with so many numbers each, none of them up to the number given; a strip's name is its place.
    pub(super) fn of_strips(strips: impl Iterator<Item = (usize, i64)>) -> Self {
        let (sizes, befores): (Vec<usize>, Vec<i64>) = strips.unzip();
        Self::new(befores.into_iter().zip(0..).collect(), Sizes::Known(sizes))
    }

    fn new(open: BTreeSet<(i64, i64)>, sizes: Sizes) -> Self {
        Self { open, known: BinaryHeap::new(), last: i64::MIN, sizes }
    }

    /// Whether all numbers were given out.
    pub(super) fn is_done(&self) -> bool {
        self.open.is_empty() && self.known.is_empty()
    }

    /// The next numbers, each once, at most `most` of them; fewer when something is to be asked first.
    pub(super) fn take(&mut self, most: usize) -> Vec<i64> {
        let end = self.open.first().map_or(i64::MAX, |(known, _)| *known);
        let mut numbers = Vec::new();
        while numbers.len() < most
            && self.known.peek().is_some_and(|Reverse(number)| *number <= end)
            && let Some(Reverse(number)) = self.known.pop()
        {
            if number != self.last {
                self.last = number;
                numbers.push(number);
            }
        }
        numbers
    }

    /// What is to be asked next; none when everything is known.
    pub(super) fn question(&self) -> Option<Question> {
        let (place, _) = self.open.first()?;
        // Numbers are given once: whoever stands further ahead is not needed for as many of them as one answer brings.
        let near = self.open.range(..=(place.saturating_add(FETCH_MAX as i64), i64::MAX)).copied();
        let (afters, strands): (Vec<i64>, Vec<i64>) = match &self.sizes {
            Sizes::Unknown(each_min, all) => near.take(all / each_min).unzip(),
            Sizes::Known(sizes) => {
                let mut asked = 0;
                let fits = |(_, strip): &(i64, i64)| {
                    asked += sizes[usize::try_from(*strip).expect("a strip's place")];
                    asked <= FETCH_MAX
                };
                near.take_while(fits).unzip()
            }
        };
        let each = match &self.sizes {
            Sizes::Unknown(_, all) => (all / strands.len()) as i64,
            Sizes::Known(_) => i64::MAX,
        };
        Some(Question { strands, afters, each })
    }

    /// What Postgres said to that: numbers, each with the place that its strand has in the question, from 1 on.
    pub(super) fn answer(&mut self, question: &Question, nths: &[i64], seqs: &[i64]) {
        let mut found = vec![(0, i64::MIN); question.strands.len()];
        for (nth, seq) in nths.iter().zip(seqs) {
            let (count, last) = &mut found[usize::try_from(nth - 1).expect("a place in the question")];
            (*count, *last) = (*count + 1, seq.max(last).to_owned());
            self.known.push(Reverse(*seq));
        }
        for ((strand, after), (count, last)) in question.strands.iter().zip(&question.afters).zip(found) {
            self.open.remove(&(*after, *strand));
            if count == question.each {
                self.open.insert((last, *strand));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// What Postgres would say, for transactions with these numbers.
    fn answer(log: &BTreeMap<i64, Vec<i64>>, question: &Question) -> (Vec<i64>, Vec<i64>) {
        let asked = question.strands.iter().zip(&question.afters).zip(1..);
        let found = asked.flat_map(|((xact, after), nth)| {
            let behind = log[xact].iter().filter(move |seq| *seq > after).take(question.each as usize);
            behind.map(move |seq| (nth, *seq))
        });
        found.unzip()
    }

    proptest! {
        #[test]
        fn all_numbers_come_once_in_order_and_no_transaction_is_asked_in_vain_but_once(
            owners in prop::collection::vec(0_i64..40, 0..600),
            gaps in prop::collection::vec(1_i64..30, 600),
            after in 0_i64..500,
            fetch_max in 8_usize..64,
            most in 1_usize..50,
        ) {
            let mut log: BTreeMap<i64, Vec<i64>> = (0..40).map(|xact| (xact, Vec::new())).collect();
            let mut seq = 0;
            for (xact, gap) in owners.iter().zip(gaps) {
                seq += gap;
                log.get_mut(xact).unwrap().push(seq);
            }
            let mut expected: Vec<i64> = log.values().flatten().copied().filter(|seq| *seq > after).collect();
            expected.sort_unstable();
            let xacts: Vec<i64> = log.keys().copied().collect();
            let mut merge = Merge::of_transactions(&xacts, after);
            merge.sizes = Sizes::Unknown(4, fetch_max);
            let (mut numbers, mut asked) = (Vec::new(), 0);
            while !merge.is_done() {
                let taken = merge.take(most);
                prop_assert!(taken.len() <= most);
                if taken.len() < most && let Some(question) = merge.question() {
                    prop_assert!(question.strands.len() * question.each as usize <= fetch_max);
                    asked += question.strands.len();
                    let (nths, seqs) = answer(&log, &question);
                    merge.answer(&question, &nths, &seqs);
                }
                numbers.extend(taken);
            }
            prop_assert_eq!(&numbers, &expected);
            prop_assert!(asked <= xacts.len() + expected.len() / 4, "{} for {}", asked, expected.len());
        }

        #[test]
        fn strips_that_overlap_give_each_number_once_and_each_strip_is_asked_once(
            strips in prop::collection::vec(prop::collection::btree_set(1_i64..500, 1..30), 0..40),
            most in 1_usize..50,
        ) {
            let extents = strips.iter().map(|strip| (strip.len(), strip.first().unwrap() - 1));
            let mut merge = Merge::of_strips(extents);
            let (mut numbers, mut asked) = (Vec::new(), 0);
            while !merge.is_done() {
                let taken = merge.take(most);
                prop_assert!(taken.len() <= most);
                if taken.len() < most && let Some(question) = merge.question() {
                    asked += question.strands.len();
                    let found = question.strands.iter().zip(1..);
                    let found = found.flat_map(|(strip, nth)| strips[*strip as usize].iter().map(move |seq| (nth, *seq)));
                    let (nths, seqs): (Vec<i64>, Vec<i64>) = found.unzip();
                    merge.answer(&question, &nths, &seqs);
                }
                numbers.extend(taken);
            }
            let expected: BTreeSet<i64> = strips.iter().flatten().copied().collect();
            prop_assert!(numbers.iter().eq(&expected), "{:?}", numbers);
            prop_assert_eq!(asked, strips.len());
        }
    }
}
