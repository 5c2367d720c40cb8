//! Selectors of Kubernetes, as `kubectl` takes them: whether one can be meant.
//!
//! *In*: text like `app=web,tier in (a,b),!test`. *Out*: what is wrong with it. *Bound*: its length. *When full*: does not apply.
//!
//! The API server applies selectors; this only says early what it would refuse.

/// Longest name of a label, without its prefix, and longest value.
const NAME_MAX: usize = 63;
/// Longest prefix of a label's name.
const PREFIX_MAX: usize = 253;

/// What is wrong with a selector of labels.
pub(crate) fn label_mistake(selector: &str) -> Option<String> {
    parts(selector).map_or_else(Some, |parts| parts.into_iter().find_map(|part| requirement(part).err()))
}

/// What is wrong with a selector of fields.
pub(crate) fn field_mistake(selector: &str) -> Option<String> {
    let parts = selector.split(',').map(str::trim).filter(|_| !selector.trim().is_empty());
    parts.map(|part| (part, part.split_once("!=").or_else(|| part.split_once("==")).or_else(|| part.split_once('=')))).find_map(
        |(part, split)| match split {
            Some((field, _)) if !field.is_empty() && !field.contains(char::is_whitespace) => None,
            _ => Some(format!("'{part}' selects by no field: write field=value or field!=value, like spec.nodeName=node-1")),
        },
    )
}

/// What stands between commas, but for those in brackets.
fn parts(selector: &str) -> Result<Vec<&str>, String> {
    let (mut parts, mut start, mut is_open) = (Vec::new(), 0, false);
    for (at, c) in selector.char_indices() {
        match c {
            '(' if !is_open => is_open = true,
            ')' if is_open => is_open = false,
            '(' | ')' => return Err(format!("'{selector}' has a bracket too many")),
            ',' if !is_open => {
                parts.push(selector[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    if is_open {
        return Err(format!("'{selector}' lacks a ')'"));
    }
    let last = selector[start..].trim();
    if !last.is_empty() || !parts.is_empty() {
        parts.push(last);
    }
    Ok(parts)
}

fn requirement(part: &str) -> Result<(), String> {
    if part.is_empty() {
        return Err("there is nothing beside a comma".to_owned());
    }
    if let Some(name) = part.strip_prefix('!') {
        return label_name(name.trim());
    }
    if let Some((before, list)) = part.split_once('(') {
        let Some((name, "in" | "notin")) = before.trim_end().rsplit_once(char::is_whitespace) else {
            return Err(format!("'{part}' is no condition: write name in (a,b) or name notin (a,b)"));
        };
        label_name(name.trim())?;
        let Some(list) = list.strip_suffix(')') else { return Err(format!("'{part}' goes on behind its ')'")) };
        return list.split(',').map(str::trim).try_for_each(label_value);
    }
    for operator in ["!=", "==", "="] {
        if let Some((name, value)) = part.split_once(operator) {
            return label_name(name.trim()).and_then(|()| label_value(value.trim()));
        }
    }
    if let Some((name, value)) = part.split_once(['>', '<']) {
        label_name(name.trim())?;
        return value.trim().parse::<i64>().map(drop).map_err(|_| format!("'{}' is no whole number, which > and < compare", value.trim()));
    }
    label_name(part)
}

fn label_name(text: &str) -> Result<(), String> {
    let (prefix, name) = text.split_once('/').map_or((None, text), |(prefix, name)| (Some(prefix), name));
    let is_prefix = |prefix: &str| {
        let part = |part: &str| is_word(part, |b| b == b'-') && !part.bytes().any(|b| b.is_ascii_uppercase());
        prefix.len() <= PREFIX_MAX && prefix.split('.').all(part)
    };
    if !is_word(name, |b| matches!(b, b'-' | b'_' | b'.')) || name.len() > NAME_MAX || !prefix.is_none_or(is_prefix) {
        return Err(format!("'{text}' is no name of a label: letters, digits, '-', '_' and '.', like app or app.kubernetes.io/name"));
    }
    Ok(())
}

fn label_value(text: &str) -> Result<(), String> {
    if text.is_empty() || (is_word(text, |b| matches!(b, b'-' | b'_' | b'.')) && text.len() <= NAME_MAX) {
        return Ok(());
    }
    Err(format!("'{text}' is no value of a label: up to {NAME_MAX} letters, digits, '-', '_' and '.'"))
}

/// Letters and digits, and between them what else is `inside`.
fn is_word(text: &str, inside: impl Fn(u8) -> bool) -> bool {
    let ends = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
    text.bytes().all(|b| b.is_ascii_alphanumeric() || inside(b)) && ends(text.bytes().next()) && ends(text.bytes().next_back())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selector_of_labels_is_what_kubectl_takes() {
        for good in ["", "app", "!app", "app=web", "app==web,tier!=test", "a.b/c in (x, y),n notin (z)", "app=", "size>3,size<9", "a in ()"]
        {
            assert_eq!(label_mistake(good), None, "{good}");
        }
        for bad in [
            "=web",
            "app=web,",
            ",",
            "app in x",
            "app in (x",
            "app) in (x)",
            "app=a b",
            "-app=x",
            "A.B/c=x",
            "size>big",
            "a in (x) y",
            "app = $x",
        ] {
            assert!(label_mistake(bad).is_some(), "{bad}");
        }
    }

    #[test]
    fn a_selector_of_fields_compares() {
        for good in ["", "spec.nodeName=n", "status.phase!=Failed,metadata.name==x"] {
            assert_eq!(field_mistake(good), None, "{good}");
        }
        for bad in ["spec.nodeName", "=x", "a b=c", "x=1,"] {
            assert!(field_mistake(bad).is_some(), "{bad}");
        }
    }
}
