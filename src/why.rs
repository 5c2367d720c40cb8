//! `strata why`: the whole chain of one target or series, from the object in the cluster to each relay's last acknowledgement.
//!
//! *In*: `pod/NAME`, `svc/NAME`, an address or URL, or a selector of series. *Out*: a line per step, and what to do about each that is wrong or that another
//! process knows; exit code 0: samples get through, 1: not, or this process does not know. *Bound*: one connection, a look at the stream per target.
//! *When full*: the first targets are followed.

use std::fmt;
use std::process::ExitCode;

use config::Config;
use kubernetes::examine::{Kind, Step, Verdict};
use serde_json::json;

use crate::place::Place;
use crate::{Output, ask, check, usage};

mod chain;
mod look;
mod wanted;

use chain::Chain;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// `pod/NAME`, `svc/NAME` or `service/NAME`; an address or URL of a target; or a PromQL selector of series, such as `up` or '{job="api"}'.
    subject: String,
    /// The object's namespace; default: Strata's own.
    #[arg(short, long)]
    namespace: Option<String>,
    #[command(flatten)]
    place: Place,
    /// How the steps are printed.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// What a person asks, and how it is asked elsewhere.
struct Question {
    subject: Subject,
    /// As written.
    text: String,
    namespace: Option<String>,
}

/// What is asked about.
#[derive(Debug, PartialEq, Eq)]
enum Subject {
    Object(Kind, String),
    Address(String),
    Series(String),
}

pub(crate) fn main(args: &Args) -> ExitCode {
    let subject = match Subject::of(&args.subject) {
        Ok(subject) => subject,
        Err(message) => return usage(&message),
    };
    let api = match args.place.api(false) {
        Ok(api) => api,
        Err(code) => return code,
    };
    let config = match &subject {
        Subject::Object(..) => match check::load_or_report(args.place.source()) {
            Ok(config) => config,
            Err(code) => return code,
        },
        _ => Config::default(),
    };
    let question = Question { subject, text: args.subject.clone(), namespace: args.namespace.clone() };
    ask(async {
        let steps = Chain::new(&api, &question).await?.follow(&config).await?;
        let reached = steps.iter().all(|step| !matches!(step.verdict, Verdict::Bad | Verdict::Elsewhere));
        match args.output {
            Output::Json => println!("{}", json!({"subject": args.subject, "reached": reached, "steps": steps})),
            Output::Text => print!("{}", text(&steps)),
        }
        Ok(reached)
    })
}

impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "strata why '{}'", self.text)?;
        self.namespace.iter().try_for_each(|namespace| write!(f, " -n {namespace}"))
    }
}

impl Subject {
    /// *Errors*: what to write instead.
    fn of(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let object = |kind, name: &str| match name.is_empty() || name.contains('/') {
            true => Err(format!(
                "'{text}' names no object: write {}/NAME, and its namespace with -n",
                text.split('/').next().unwrap_or_default()
            )),
            false => Ok(Self::Object(kind, name.to_owned())),
        };
        match text.split_once('/') {
            Some(("pod" | "pods" | "po", name)) => object(Kind::Pod, name),
            Some(("svc" | "service" | "services", name)) => object(Kind::Service, name),
            _ if text.contains("://") => Ok(Self::Address(text.to_owned())),
            _ if !text.contains('{') && text.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) => {
                Ok(Self::Address(text.to_owned()))
            }
            _ if text.is_empty() => Err("name something: pod/NAME, svc/NAME, a URL, or a selector of series".to_owned()),
            _ => Ok(Self::Series(text.to_owned())),
        }
    }
}

/// A line per step, and its fix below it.
fn text(steps: &[Step]) -> String {
    let width = steps.iter().map(|step| step.stage.len()).max().unwrap_or_default();
    let mut out = String::new();
    for step in steps {
        let mark = match step.verdict {
            Verdict::Good => "ok ",
            Verdict::Bad => "NO ",
            Verdict::Note => "-  ",
            Verdict::Elsewhere => "?  ",
        };
        out.push_str(&format!("{mark} {:width$}  {}\n", step.stage, step.text));
        if let Some(fix) = &step.fix {
            out.push_str(&format!("    {:width$}  → {fix}\n", ""));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_is_an_object_an_address_or_a_selector() {
        let check = |text: &str, expect: Subject| assert_eq!(Subject::of(text), Ok(expect), "{text}");
        check("pod/web-1", Subject::Object(Kind::Pod, "web-1".to_owned()));
        check("svc/web", Subject::Object(Kind::Service, "web".to_owned()));
        check("http://a:1/metrics", Subject::Address("http://a:1/metrics".to_owned()));
        check("[fd00::1]:9100", Subject::Address("[fd00::1]:9100".to_owned()));
        check("up", Subject::Series("up".to_owned()));
        check("job:rate:5m", Subject::Series("job:rate:5m".to_owned()));
        check("{instance=\"a:1\"}", Subject::Series("{instance=\"a:1\"}".to_owned()));
        assert!(Subject::of("pod/a/b").is_err_and(|message| message.contains("pod/NAME")));
        assert!(Subject::of(" ").is_err());
    }

    #[test]
    fn what_is_wrong_stands_out_with_its_fix() {
        let steps = [
            Step::good("object", "pod 'a' is Running"),
            Step::bad("annotation", "there is none", "write one"),
            Step::note("relay", "other"),
            Step::elsewhere("relay", "not here", "ask there"),
        ];
        let expect = "ok  object      pod 'a' is Running\n\
                      NO  annotation  there is none\n\
                      \x20               → write one\n\
                      -   relay       other\n\
                      ?   relay       not here\n\
                      \x20               → ask there\n";
        assert_eq!(text(&steps), expect);
    }
}
