//! A browser without a screen: Debian's Chromium, driven through the pipes of its DevTools protocol.
//!
//! *In*: a page on loopback, expressions. *Out*: what the page says of itself. *Bound*: every answer and every state has a deadline; the profile
//! is a folder of its own. What the page does wrong (an exception, a broken policy) is kept, and asked for with [`Browser::complaints`].

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::wait;

/// An answer of the browser, its start included.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// What it needs to be alone: no screen, no sandbox (which root cannot have), nothing that calls anywhere.
const FLAGS: [&str; 9] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
];

/// One browser with one page; it ends when dropped.
pub struct Browser {
    /// Ends with this.
    _child: Child,
    _profile: TempDir,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
    session: Value,
    asked: u64,
    complaints: Vec<String>,
}

impl Browser {
    /// Starts it with a page.
    ///
    /// *Errors*: there is no Chromium, or it does not answer.
    pub async fn open(url: &str) -> Result<Self> {
        let profile = TempDir::with_prefix("strata-e2e-browser-")?;
        // The protocol is spoken on the descriptors 3 and 4.
        let mut child = Command::new("sh")
            .args(["-c", "exec chromium \"$@\" 3<&0 4>&1 >/dev/null 2>&1", "sh"])
            .args(FLAGS)
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let (commands, answers) = (child.stdin.take().context("piped")?, child.stdout.take().context("piped")?);
        let (answers, session) = (BufReader::new(answers), Value::Null);
        let mut browser = Self { _child: child, _profile: profile, commands, answers, session, asked: 0, complaints: Vec::new() };
        let page = browser.ask("Target.createTarget", json!({ "url": "about:blank" })).await.context("run `make setup`")?;
        let attached = browser.ask("Target.attachToTarget", json!({ "targetId": page["targetId"], "flatten": true })).await?;
        browser.session = attached["sessionId"].clone();
        for domain in ["Runtime.enable", "Log.enable", "Page.enable"] {
            browser.ask(domain, json!({})).await?;
        }
        browser.ask("Page.navigate", json!({ "url": url })).await?;
        Ok(browser)
    }

    /// What an expression is on the page.
    ///
    /// *Errors*: it throws, or no answer.
    pub async fn value(&mut self, expression: &str) -> Result<Value> {
        let parameters = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let found = self.ask("Runtime.evaluate", parameters).await?;
        if !found["exceptionDetails"].is_null() {
            bail!("'{expression}': {}", found["exceptionDetails"]["exception"]["description"]);
        }
        Ok(found["result"]["value"].clone())
    }

    /// Waits until an expression is true.
    ///
    /// *Errors*: it never is within `limit`; the text has what the page shows.
    pub async fn until(&mut self, expression: &str, limit: Duration) -> Result<()> {
        // While a page loads there may be nothing to ask.
        let waited = wait::until(expression, limit, async || (self.value(expression).await.ok()? == true).then_some(())).await;
        match waited {
            Ok(()) => Ok(()),
            Err(error) => Err(error.context(format!("the page shows: {}", self.value("document.body.innerText").await?))),
        }
    }

    /// Waits until a text is somewhere on the page.
    ///
    /// *Errors*: it never is within `limit`.
    pub async fn shows(&mut self, text: &str, limit: Duration) -> Result<()> {
        self.until(&format!("document.body.innerText.includes({})", json!(text)), limit).await
    }

    /// Exceptions and broken policies of the page up to now.
    pub fn complaints(&self) -> &[String] {
        &self.complaints
    }

    async fn ask(&mut self, method: &str, parameters: Value) -> Result<Value> {
        self.asked += 1;
        let mut command = json!({ "id": self.asked, "method": method, "params": parameters });
        if !self.session.is_null() {
            command["sessionId"] = self.session.clone();
        }
        self.commands.write_all(format!("{command}\0").as_bytes()).await?;
        let answered = tokio::time::timeout(ANSWER_WITHIN, async {
            loop {
                let mut said = Vec::new();
                self.answers.read_until(0, &mut said).await?;
                if said.pop() != Some(0) {
                    bail!("chromium ended");
                }
                let said: Value = serde_json::from_slice(&said)?;
                if said["id"] == self.asked {
                    return Ok(said);
                }
                self.note(&said);
            }
        });
        let answer = answered.await.with_context(|| format!("no answer of chromium to {method}"))??;
        if !answer["error"].is_null() {
            bail!("{method}: {}", answer["error"]);
        }
        Ok(answer["result"].clone())
    }

    fn note(&mut self, said: &Value) {
        match said["method"].as_str() {
            Some("Runtime.exceptionThrown") => self.complaints.push(said["params"]["exceptionDetails"].to_string()),
            Some("Log.entryAdded") if said["params"]["entry"]["source"] != "network" => {
                self.complaints.push(said["params"]["entry"].to_string());
            }
            _ => {}
        }
    }
}
