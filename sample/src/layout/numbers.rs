//! Numbers of symbols, in the width that they need: two bytes each until one does not fit.
//!
//! *In*: numbers, one after the other. *Out*: the same, by place. *Bound*: 2 bytes per number, 4 where a piece has more than 65,536 texts.
//! *When full*: does not apply.

/// Numbers that grow at their end.
#[derive(Debug)]
pub(crate) enum Numbers {
    Narrow(Vec<u16>),
    Wide(Vec<u32>),
}

/// Some of the numbers of a layout, side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Values<'a> {
    /// All are below 65,536.
    Narrow(&'a [u16]),
    /// Some are not.
    Wide(&'a [u32]),
}

impl Default for Numbers {
    fn default() -> Self {
        Self::Narrow(Vec::new())
    }
}

impl Numbers {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Narrow(numbers) => numbers.len(),
            Self::Wide(numbers) => numbers.len(),
        }
    }

    #[inline]
    pub(crate) fn extend(&mut self, more: impl Iterator<Item = u32> + Clone) {
        match self {
            Self::Wide(numbers) => numbers.extend(more),
            Self::Narrow(numbers) if more.clone().all(|number| number <= u32::from(u16::MAX)) => {
                numbers.extend(more.map(|number| number as u16));
            }
            Self::Narrow(numbers) => *self = Self::Wide(numbers.iter().map(|number| u32::from(*number)).chain(more).collect()),
        }
    }

    /// Makes room for so many.
    pub(crate) fn reserve(&mut self, more: usize) {
        match self {
            Self::Narrow(numbers) => numbers.reserve(more),
            Self::Wide(numbers) => numbers.reserve(more),
        }
    }

    /// So many, from a place on.
    #[inline]
    pub(crate) fn slice(&self, from: usize, count: usize) -> Values<'_> {
        match self {
            Self::Narrow(numbers) => Values::Narrow(&numbers[from..from + count]),
            Self::Wide(numbers) => Values::Wide(&numbers[from..from + count]),
        }
    }

    /// Bytes of memory.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Narrow(numbers) => 2 * numbers.capacity(),
            Self::Wide(numbers) => 4 * numbers.capacity(),
        }
    }

    pub(crate) fn shrink(&mut self) {
        match self {
            Self::Narrow(numbers) => numbers.shrink_to_fit(),
            Self::Wide(numbers) => numbers.shrink_to_fit(),
        }
    }
}

impl<'a> Values<'a> {
    /// The number at a place.
    ///
    /// *Limits*: panics at or beyond [`Values::len`], as a slice does.
    #[must_use]
    #[inline]
    pub fn at(self, place: usize) -> u32 {
        match self {
            Self::Narrow(numbers) => u32::from(numbers[place]),
            Self::Wide(numbers) => numbers[place],
        }
    }

    /// So many of the first ones both have in common, and so many of the last ones behind these.
    pub(crate) fn common(self, other: Self) -> (usize, usize) {
        fn common<T: PartialEq>(one: &[T], other: &[T]) -> (usize, usize) {
            let same = |(one, other): &(&T, &T)| one == other;
            let head = one.iter().zip(other).take_while(same).count();
            (head, one[head..].iter().rev().zip(other[head..].iter().rev()).take_while(same).count())
        }
        match (self, other) {
            (Self::Narrow(one), Self::Narrow(other)) => common(one, other),
            (Self::Wide(one), Self::Wide(other)) => common(one, other),
            // Numbers of two widths are of two segments.
            _ => (0, 0),
        }
    }

    /// How many they are.
    #[must_use]
    pub fn len(self) -> usize {
        match self {
            Self::Narrow(numbers) => numbers.len(),
            Self::Wide(numbers) => numbers.len(),
        }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// All of them in order.
    pub fn iter(self) -> impl ExactSizeIterator<Item = u32> + Clone + 'a {
        (0..self.len()).map(move |place| self.at(place))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_what_they_are_where_one_needs_more_room() {
        let mut numbers = Numbers::default();
        let all = [0, 65_535, 7, 65_536, u32::MAX, 1];
        for (count, number) in all.into_iter().enumerate() {
            numbers.extend(std::iter::once(number));
            assert_eq!(numbers.len(), count + 1);
            assert!(numbers.slice(0, count + 1).iter().eq(all[..=count].iter().copied()));
            assert_eq!(matches!(numbers, Numbers::Narrow(_)), count < 3);
        }
        assert_eq!((numbers.slice(3, 2).at(1), numbers.slice(2, 0).is_empty()), (u32::MAX, true));
    }
}
