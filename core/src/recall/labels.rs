//! Which grains of a namespace carry which tags, as bitmaps of slots.

use roaring::RoaringBitmap;
use std::collections::BTreeMap;

/// The tags of a namespace.
#[derive(Default)]
pub(super) struct Labels {
    by_tag: BTreeMap<Box<str>, RoaringBitmap>,
}

impl Labels {
    /// Notes that a grain carries a tag.
    pub fn add(&mut self, tag: &str, slot: u32) {
        match self.by_tag.get_mut(tag) {
            Some(slots) => {
                slots.insert(slot);
            }
            None => {
                self.by_tag.insert(tag.into(), RoaringBitmap::from_iter([slot]));
            }
        }
    }

    /// Notes that a grain no longer carries a tag.
    pub fn remove(&mut self, tag: &str, slot: u32) {
        if let Some(slots) = self.by_tag.get_mut(tag) {
            slots.remove(slot);
            if slots.is_empty() {
                self.by_tag.remove(tag);
            }
        }
    }

    /// The grains that carry all of these tags; `None` where no tag is given.
    pub fn all_of<'a>(&self, tags: impl Iterator<Item = &'a str>) -> Option<RoaringBitmap> {
        let mut of_all: Option<RoaringBitmap> = None;
        for tag in tags {
            let Some(slots) = self.by_tag.get(tag) else { return Some(RoaringBitmap::new()) };
            of_all = Some(match of_all {
                None => slots.clone(),
                Some(of_all) => of_all & slots,
            });
        }
        of_all
    }

    /// Bytes of memory held, about.
    pub fn memory(&self) -> usize {
        const NODE: usize = size_of::<(Box<str>, RoaringBitmap)>() * 3 / 2;
        self.by_tag.iter().map(|(tag, slots)| NODE + tag.len() + slots.serialized_size()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_narrow_and_forget() {
        let mut labels = Labels::default();
        for (tag, slot) in [("red", 1), ("red", 2), ("red", 2), ("big", 2), ("big", 3)] {
            labels.add(tag, slot);
        }
        let of = |labels: &Labels, tags: &[&str]| {
            labels.all_of(tags.iter().copied()).map(|slots| slots.iter().collect::<Vec<_>>())
        };
        assert_eq!(of(&labels, &[]), None);
        assert_eq!(of(&labels, &["red"]), Some(vec![1, 2]));
        assert_eq!(of(&labels, &["red", "big"]), Some(vec![2]));
        assert_eq!(of(&labels, &["red", "unheard of"]), Some(vec![]));
        labels.remove("big", 2);
        labels.remove("big", 3);
        labels.remove("big", 3);
        assert_eq!(of(&labels, &["red", "big"]), Some(vec![]));
        assert!(labels.by_tag.len() == 1 && labels.memory() > 0);
    }
}
