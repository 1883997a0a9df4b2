use super::*;

fn content_of(writes: &[(u64, u8, usize)]) -> Content {
    let mut content = Content::default();
    for (seq, &(offset, value, len)) in (1..).zip(writes) {
        content.write(offset, &vec![value; len], seq, Fate::Cached);
    }
    content
}

fn read(content: &Content) -> Vec<u8> {
    let mut bytes = vec![0xee; content.len() as usize];
    assert_eq!(content.read(0, &mut bytes), bytes.len());
    bytes
}

#[test]
fn reads_see_patches_holes_and_ends() {
    let content = content_of(&[(10, 1, 5), (5000, 2, 10_000), (4095, 3, 2)]);
    let bytes = read(&content);
    assert_eq!(bytes.len(), 15_000);
    assert_eq!((bytes[9], bytes[10], bytes[14], bytes[15]), (0, 1, 1, 0));
    assert_eq!((bytes[4094], bytes[4095], bytes[4096], bytes[4097]), (0, 3, 3, 0));
    assert_eq!((bytes[4999], bytes[5000], bytes[14_999]), (0, 2, 2));
    let mut beyond = [7; 4];
    assert_eq!(content.read(14_998, &mut beyond), 2);
    assert_eq!(content.read(20_000, &mut beyond), 0);
}

#[test]
fn a_prefix_crash_cuts_between_writes_to_one_page() {
    let rules = |cut| CrashRules { style: Style::Prefix(cut), tear: false, sector: 512 };
    for (cut, expected) in [(1, vec![]), (2, vec![1; 10]), (3, vec![2; 10]), (4, vec![3; 10])] {
        let mut content = content_of(&[(0, 1, 10), (0, 2, 10), (0, 3, 10)]);
        let mut losses = Losses::default();
        content.crash(rules(cut), &mut Rng::new(1), &mut losses);
        assert_eq!(read(&content), expected, "cut at {cut}");
        assert_eq!((losses.any(), losses.torn(), losses.reordered()), (cut < 4, false, false));
    }
}

#[test]
fn a_length_that_is_lost_takes_the_cut_of_the_pages_with_it() {
    for seed in 0..50 {
        let mut rng = Rng::new(seed);
        let mut content = content_of(&[(0, 1, 12_288)]);
        content.sync(SyncFate::Durable, &mut rng);
        content.set_len(100, 2);
        let rules = CrashRules { style: Style::Prefix(2), tear: true, sector: 512 };
        content.crash(rules, &mut rng, &mut Losses::default());
        assert_eq!(read(&content), vec![1; 12_288], "the cut did not happen, so it may not have zeroed anything");
    }
}

#[test]
fn what_was_beyond_the_end_never_comes_back() {
    let mut content = content_of(&[(0, 1, 8192)]);
    content.set_len(100, 2);
    content.set_len(8192, 3);
    assert_eq!(read(&content)[100..], [0; 8092]);
    content.sync(SyncFate::Durable, &mut Rng::new(1));
    content.crash(
        CrashRules { style: Style::Subset, tear: true, sector: 512 },
        &mut Rng::new(1),
        &mut Losses::default(),
    );
    assert_eq!(read(&content)[100..], [0; 8092]);
}

#[test]
fn memory_for_versions_is_bounded() {
    let mut content = content_of(&vec![(0, 1, 10); 1000]);
    assert_eq!(content.dirty[&0].versions.len(), VERSIONS_MAX);
    for seq in 0..1000 {
        content.write(seq * 10, &[2; 10], seq, Fate::Cached);
    }
    assert!(content.lengths.len() <= LENGTHS_MAX && content.history.len() <= HISTORY_MAX);
}
