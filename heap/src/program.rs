//! The pages of the program's own file.
//!
//! *In*: `/proc/self`. *Out*: they are no longer resident for this process. *Bound*: the mappings of one process. *When full*: does not apply; without
//! `/proc` nothing happens.

use std::ops::Range;
use std::path::Path;

/// A mapping of a file, as `/proc/self/smaps` has it.
struct Mapping<'a> {
    pages: Range<usize>,
    is_writable: bool,
    file: &'a str,
    /// kB of pages that are no longer the file's: the loader wrote to them, or a debugger.
    own_kb: u64,
}

impl Mapping<'_> {
    /// Whether it holds the same bytes as the program's file, and always will.
    fn is_as_in(&self, program: &Path) -> bool {
        program.as_os_str() == self.file && self.own_kb == 0 && !self.is_writable
    }
}

/// Drops all pages that are the file's own: the next look at one of them takes it from the file again.
pub(crate) fn give_back() {
    let (Ok(smaps), Ok(program)) = (std::fs::read_to_string("/proc/self/smaps"), std::fs::read_link("/proc/self/exe")) else { return };
    for mapping in mappings(&smaps).filter(|mapping| mapping.is_as_in(&program)) {
        let Range { start, end } = mapping.pages;
        // SAFETY: the range is a mapping of the program's file that nothing has written to and nothing can write to: what is dropped is read
        // from the file again, the same bytes.
        unsafe { libc::madvise(std::ptr::with_exposed_provenance_mut(start), end - start, libc::MADV_DONTNEED) };
    }
}

/// Each mapping's first line is `from-to rwxp offset device inode file`, the others are `Name: value kB`.
fn mappings(smaps: &str) -> impl Iterator<Item = Mapping<'_>> {
    let mut lines = smaps.lines().peekable();
    std::iter::from_fn(move || {
        loop {
            let Some(mut mapping) = head(lines.next()?) else { continue };
            while let Some(line) = lines.next_if(|line| head(line).is_none()) {
                if let Some(kb) = line.strip_prefix("Anonymous:").and_then(|rest| rest.trim().strip_suffix(" kB")?.parse().ok()) {
                    mapping.own_kb = kb;
                }
            }
            return Some(mapping);
        }
    })
}

fn head(line: &str) -> Option<Mapping<'_>> {
    let mut words = line.splitn(6, ' ');
    let (start, end) = words.next()?.split_once('-')?;
    let address = |text| usize::from_str_radix(text, 16).ok();
    let (pages, modes) = (address(start)?..address(end)?, words.next()?);
    // Without the line that says how many pages are its own, it is left alone.
    Some(Mapping { pages, is_writable: modes.contains('w'), file: words.nth(3)?.trim_start(), own_kb: u64::MAX })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
55e24b245000-55e24c000000 r--p 00000000 fe:00 9986205                    /opt/a program
Rss:                4864 kB
Anonymous:             0 kB
55e24c000000-55e24d000000 rw-p 00df0000 fe:00 9986205                    /opt/a program
Anonymous:            24 kB
7fff84dfd000-7fff84e1e000 rw-p 00000000 00:00 0                          [stack]
7fff84e1e000-7fff84e1f000 r-xp 00000000 fe:00 1                          /lib/other
";

    #[test]
    fn mappings_are_read() {
        let read: Vec<_> =
            mappings(SMAPS).map(|mapping| (mapping.file, mapping.pages.len(), mapping.is_writable, mapping.own_kb)).collect();
        let expected = [
            ("/opt/a program", 0xdbb000, false, 0),
            ("/opt/a program", 0x1000000, true, 24),
            ("[stack]", 0x21000, true, u64::MAX),
            ("/lib/other", 0x1000, false, u64::MAX),
        ];
        assert_eq!(read, expected);
    }

    /// What a start leaves behind is here the program's own pages, each touched once.
    #[test]
    fn pages_of_the_program_go_and_come_back() {
        let smaps = std::fs::read_to_string("/proc/self/smaps").expect("Linux");
        let program = std::fs::read_link("/proc/self/exe").expect("Linux");
        let bytes = std::fs::read(&program).expect("the test itself");
        let resident = || {
            let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
            let kb = status.lines().find_map(|line| line.strip_prefix("RssFile:")).expect("Linux");
            kb.trim().trim_end_matches(" kB").parse::<u64>().expect("a number")
        };
        let touched: Vec<_> = mappings(&smaps).filter(|mapping| mapping.is_as_in(&program)).map(|mapping| mapping.pages).collect();
        assert!(!touched.is_empty() && bytes.len() > touched.iter().map(Range::len).sum(), "{smaps}");
        for page in touched.iter().cloned().flat_map(|pages| pages.step_by(4096)) {
            // SAFETY: a readable page of the program's own file.
            let _ = unsafe { std::ptr::with_exposed_provenance::<u8>(page).read_volatile() };
        }
        let before = resident();
        super::super::give_back();
        let after = resident();
        assert!(after < before, "{before} kB, then {after} kB");
        assert_eq!(mappings(SMAPS).count(), 4, "and the program goes on");
    }
}
