//! `strata nats`: the role, or the seeds that its cluster is made with.
//!
//! *In*: the arguments of the role; or a configuration. *Out*: the running server; or the missing seeds in `buffer.nats.seeds_dir`, or in a Secret.
//! *Bound*: one small file per user. *When full*: an error that names the file.

use std::process::ExitCode;

use anyhow::{Context as _, bail};
use bundled_nats::keys;
use clap::Subcommand;
use config::{Config, Nats};
use kubernetes::client::Cluster;

use crate::role::Role;
use crate::{Source, ask, check, fail, run};

#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
#[group(skip)]
pub(crate) struct Args {
    #[command(flatten)]
    run: run::Args,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Make the seeds that are missing in `buffer.nats.seeds_dir`, once for all members of a cluster.
    Seeds {
        #[command(flatten)]
        source: Source,
        /// Make them in this Secret of Strata's own namespace in Kubernetes instead; pods mount it as the folder.
        #[arg(long, value_name = "NAME")]
        secret: Option<String>,
    },
}

pub(crate) fn main(args: &Args) -> ExitCode {
    match &args.command {
        None => run::main(&args.run, Role::Nats),
        Some(Command::Seeds { source, secret }) => match check::report(check::load(source)) {
            Ok(loaded) => match secret {
                None => make(&loaded.config).map_or_else(|error| fail(&error), |()| ExitCode::SUCCESS),
                Some(secret) => ask(fill(&loaded.config, secret)),
            },
            Err(code) => code,
        },
    }
}

fn make(config: &Config) -> anyhow::Result<()> {
    let seeds_dir = if let Nats::External(nats) = &config.buffer.nats { nats.seeds_dir.as_deref() } else { None };
    let Some(folder) = seeds_dir else { bail!("buffer.nats names no 'seeds_dir': there is nothing to make") };
    let made = keys::make(folder, feeds(config));
    made.with_context(|| format!("cannot make seeds in '{}' (buffer.nats.seeds_dir)", folder.display()))?;
    println!("all seeds are in '{}': copy the folder to every member, and to the other processes what they need of it", folder.display());
    Ok(())
}

/// The seeds as keys of a Secret. Whether it went well: always, or it is an error.
async fn fill(config: &Config, secret: &str) -> anyhow::Result<bool> {
    let cluster = Cluster::open(&config.kubernetes.clone().unwrap_or_default()).await?;
    let given = kubernetes::secret::fill(&cluster, secret, &keys::files(feeds(config)), keys::fresh).await?;
    println!("all seeds are in the secret '{secret}' of namespace '{}': {given} are new", cluster.namespace);
    Ok(true)
}

/// The relays whose feeds have users of their own.
fn feeds(config: &Config) -> impl Iterator<Item = &str> {
    config.relays.iter().filter(|relay| relay::sink::feed_bytes(&relay.sink).is_some()).map(|relay| relay.name.as_str())
}
