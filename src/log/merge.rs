//! The numbers of many transactions' events in one order, at a cost that is linear in transactions and events alike.
//!
//! Each transaction has its events in the order of their numbers; between two of them there is no order that an index
//! knows. So all are asked for their first few, and what is known is given out up to the number beyond which some
//! transaction may have more. Then those are asked that stand there or close to it, the fewer they are the more at once.
//! Each question to a transaction either brings events or is the last one.

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
    /// The transactions that may have more events than are known, by the number up to which those are known.
    open: BTreeSet<(i64, i64)>,
    /// Numbers that are known and were not given out.
    known: BinaryHeap<Reverse<i64>>,
    /// [`FETCH_MAX`] and [`EACH_MIN`].
    sizes: (usize, usize),
}

/// A question: what to bind to [`NUMBERS`].
#[derive(Debug)]
pub(super) struct Question {
    pub(super) xacts: Vec<i64>,
    pub(super) afters: Vec<i64>,
    pub(super) each: i64,
}

impl Merge {
    /// The events of these transactions behind `after`.
    pub(super) fn new(xacts: &[i64], after: i64) -> Self {
        Self::sized(xacts, after, (FETCH_MAX, EACH_MIN))
    }

    fn sized(xacts: &[i64], after: i64, sizes: (usize, usize)) -> Self {
        Self { open: xacts.iter().map(|xact| (after, *xact)).collect(), known: BinaryHeap::new(), sizes }
    }

    /// Whether all numbers were given out.
    pub(super) fn is_done(&self) -> bool {
        self.open.is_empty() && self.known.is_empty()
    }

    /// The next numbers, at most `most`; fewer when something is to be asked first.
    pub(super) fn take(&mut self, most: usize) -> Vec<i64> {
        let end = self.open.first().map_or(i64::MAX, |(known, _)| *known);
        let mut numbers = Vec::new();
        while numbers.len() < most && self.known.peek().is_some_and(|Reverse(number)| *number <= end) {
            numbers.extend(self.known.pop().map(|Reverse(number)| number));
        }
        numbers
    }

    /// What is to be asked next; none when everything is known.
    pub(super) fn question(&self) -> Option<Question> {
        let ((place, _), (fetch_max, each_min)) = (self.open.first()?, self.sizes);
        // Numbers are given once: whoever stands further ahead is not needed for as many of them as one answer brings.
        let ahead = place.saturating_add(fetch_max as i64);
        let near = self.open.range(..=(ahead, i64::MAX)).take(fetch_max / each_min);
        let (afters, xacts): (Vec<i64>, Vec<i64>) = near.copied().unzip();
        let each = (fetch_max / xacts.len()) as i64;
        Some(Question { xacts, afters, each })
    }

    /// What Postgres said to that: numbers, each with the place that its transaction has in the question, from 1 on.
    pub(super) fn answer(&mut self, question: &Question, nths: &[i64], seqs: &[i64]) {
        let mut found = vec![(0, i64::MIN); question.xacts.len()];
        for (nth, seq) in nths.iter().zip(seqs) {
            let place = usize::try_from(nth - 1).expect("a place in the question");
            let (count, last) = found[place];
            found[place] = (count + 1, last.max(*seq));
            self.known.push(Reverse(*seq));
        }
        for ((xact, after), (count, last)) in question.xacts.iter().zip(&question.afters).zip(found) {
            self.open.remove(&(*after, *xact));
            if count == question.each {
                self.open.insert((last, *xact));
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
        let asked = question.xacts.iter().zip(&question.afters).zip(1..);
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
            let mut merge = Merge::sized(&xacts, after, (fetch_max, 4));
            let (mut numbers, mut asked) = (Vec::new(), 0);
            while !merge.is_done() {
                let taken = merge.take(most);
                prop_assert!(taken.len() <= most);
                if taken.len() < most && let Some(question) = merge.question() {
                    prop_assert!(question.xacts.len() * question.each as usize <= fetch_max);
                    asked += question.xacts.len();
                    let (nths, seqs) = answer(&log, &question);
                    merge.answer(&question, &nths, &seqs);
                }
                numbers.extend(taken);
            }
            prop_assert_eq!(&numbers, &expected);
            prop_assert!(asked <= xacts.len() + expected.len() / 4, "{} for {}", asked, expected.len());
        }
    }
}
