//! `keep`: only the selected series go on.
//!
//! *In*: series. *Out*: keep or drop, once per series. *Bound*: no state. *When full*: does not apply.

use config::{Kind, OptionsError};
use serde_json::Value;

use super::{Filter, FilterKind, Selector, Series, Verdict};

/// The registry's row.
pub const KIND: FilterKind = FilterKind {
    kind: Kind {
        name: "keep",
        summary: "Keeps the series that a PromQL selector selects and drops all others.",
        schema: || schemars::schema_for!(Selector),
        example: r#"'{job="api", __name__!~"go_.*"}'"#,
        check: |options| keep(options).map(drop),
    },
    build: |options| Ok(Box::new(keep(options)?)),
};

struct Keep(Selector);

fn keep(options: &Value) -> Result<Keep, OptionsError> {
    config::options(options).map(Keep)
}

impl Filter for Keep {
    fn verdict(&self, series: &Series<'_>) -> Verdict {
        if self.0.selects(series) { Verdict::Keep } else { Verdict::Drop }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::tests::{built, series};

    #[test]
    fn keeps_what_is_selected_only() {
        let filter = built("keep", serde_json::json!(r#"{env="prod"}"#));
        assert_eq!(filter.verdict(&series("up", &[("env", "prod")])), Verdict::Keep);
        assert_eq!(filter.verdict(&series("up", &[])), Verdict::Drop);
    }
}
