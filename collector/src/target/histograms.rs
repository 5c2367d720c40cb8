//! What is done with a target's histograms: the job's configuration, unless relabeling says otherwise of the target.
//!
//! *In*: a job's configuration, a target's labels. *Out*: [`Histograms`], and the labels that stand for it before relabeling. *Bound*:
//! three settings. *When full*: does not apply.

use config::ScrapeConfig;
use config::relabel::Labels;

/// What is done with a target's histograms.
///
/// *Shape*: none is what the configuration does not say and no rule changed; it is no `false` everywhere, see the fields of
/// [`ScrapeConfig`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Histograms {
    /// `scrape_native_histograms`.
    pub(crate) native: Option<bool>,
    /// `always_scrape_classic_histograms`.
    pub(crate) classic: Option<bool>,
    /// `convert_classic_histograms_to_nhcb`.
    pub(crate) convert: Option<bool>,
}

/// The label of each setting, as in Prometheus.
const NATIVE: &str = "__scrape_native_histograms__";
const CLASSIC: &str = "__always_scrape_classic_histograms__";
const CONVERT: &str = "__convert_classic_histograms_to_nhcb__";

/// A label's value that is neither true nor false.
pub(super) struct NoBoolean {
    pub(super) label: &'static str,
    pub(super) value: String,
}

impl Histograms {
    /// What a configuration says.
    pub(super) const fn of(scrape: &ScrapeConfig) -> Self {
        Self {
            native: scrape.scrape_native_histograms,
            classic: scrape.always_scrape_classic_histograms,
            convert: scrape.convert_classic_histograms_to_nhcb,
        }
    }

    /// The labels that a target has before relabeling. What is not configured is `false` there, as in Prometheus.
    pub(super) fn labels(self) -> [(&'static str, String); 3] {
        [(NATIVE, self.native), (CLASSIC, self.classic), (CONVERT, self.convert)]
            .map(|(label, setting)| (label, setting.unwrap_or(false).to_string()))
    }

    /// What holds for a target with these labels after relabeling. A label that is gone or that says what it said before changes nothing.
    ///
    /// *Errors*: [`NoBoolean`]: the target is not scraped.
    pub(super) fn steered(self, labels: &Labels) -> Result<Self, NoBoolean> {
        let steered = |label: &'static str, own: Option<bool>| {
            Ok(match labels.get(label) {
                "" => own,
                value => match boolean(value) {
                    Some(said) if said == own.unwrap_or(false) => own,
                    Some(said) => Some(said),
                    None => return Err(NoBoolean { label, value: value.to_owned() }),
                },
            })
        };
        Ok(Self {
            native: steered(NATIVE, self.native)?,
            classic: steered(CLASSIC, self.classic)?,
            convert: steered(CONVERT, self.convert)?,
        })
    }
}

/// What Go's `strconv.ParseBool` takes.
fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}
