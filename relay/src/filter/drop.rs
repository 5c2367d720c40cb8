//! `drop`: the selected series end here.
//!
//! *In*: series. *Out*: keep or drop, once per series. *Bound*: no state. *When full*: does not apply.

use config::{Kind, OptionsError};
use serde_json::Value;

use super::{Filter, FilterKind, Selector, Series, Verdict};

/// The registry's row.
pub const KIND: FilterKind = FilterKind {
    kind: Kind {
        name: "drop",
        summary: "Drops the series that a PromQL selector selects.",
        schema: || schemars::schema_for!(Selector),
        example: r#"'{__name__=~"go_.*"}'"#,
        check: |options| dropping(options).map(drop),
    },
    build: |options| Ok(Box::new(dropping(options)?)),
};

struct Drop(Selector);

fn dropping(options: &Value) -> Result<Drop, OptionsError> {
    config::options(options).map(Drop)
}

impl Filter for Drop {
    fn verdict(&self, series: &Series<'_>) -> Verdict {
        if self.0.selects(series) { Verdict::Drop } else { Verdict::Keep }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::tests::{built, series};

    #[test]
    fn drops_what_is_selected_only() {
        let filter = built("drop", serde_json::json!(r#"{env="prod"}"#));
        assert_eq!(filter.verdict(&series("up", &[("env", "prod")])), Verdict::Drop);
        assert_eq!(filter.verdict(&series("up", &[])), Verdict::Keep);
    }
}
