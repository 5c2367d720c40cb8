//! Links lead to files that are there and to headings that they have.

use std::path::PathBuf;

use super::{Page, pages};

/// Where `](…)` leads, with the line it stands on; web addresses and code are left out.
fn links(page: &Page) -> Vec<(usize, String)> {
    let mut in_code = false;
    let mut links = Vec::new();
    for (number, line) in page.text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code {
            continue;
        }
        let plain: String = line.split('`').step_by(2).collect();
        let found = plain.split("](").skip(1).filter_map(|piece| Some(piece.split_once(')')?.0.to_owned()));
        links.extend(found.filter(|link| !link.contains("://")).map(|link| (number + 1, link)));
    }
    links
}

/// The file that a link of this page leads to.
fn target(page: &Page, link: &str) -> PathBuf {
    let file = link.split('#').next().unwrap_or_default();
    if file.is_empty() { page.path.clone() } else { page.path.with_file_name("").join(file) }
}

/// The anchor of a heading as the usual viewers make it.
fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase();
    kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_')).map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn every_link_leads_somewhere() {
    let mut broken = Vec::new();
    let mut seen = 0;
    for page in pages() {
        for (line, link) in links(&page) {
            seen += 1;
            let path = target(&page, &link);
            if !path.exists() {
                broken.push(format!("{}:{line}: there is no {link}", page.name()));
                continue;
            }
            let part = link.split_once('#').map_or("", |(_, part)| part);
            if !part.is_empty() && !Page::read(path).headings().iter().any(|heading| anchor(heading) == part) {
                broken.push(format!("{}:{line}: there is no heading {link}", page.name()));
            }
        }
    }
    assert!(seen > 50, "only {seen} links found");
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn every_page_can_be_reached_from_the_readme() {
    let pages = pages();
    let mut reached = vec![super::root().join("README.md")];
    let mut next = 0;
    while next < reached.len() {
        let Some(page) = pages.iter().find(|page| page.path == reached[next]) else {
            next += 1;
            continue;
        };
        for (_, link) in links(page) {
            let path = std::fs::canonicalize(target(page, &link)).unwrap_or_default();
            if !reached.contains(&path) {
                reached.push(path);
            }
        }
        next += 1;
    }
    let missed: Vec<_> =
        pages.iter().filter(|page| !reached.contains(&page.path) && !page.name().contains("decisions/")).map(Page::name).collect();
    assert!(missed.is_empty(), "no link leads to {missed:?}");
}
