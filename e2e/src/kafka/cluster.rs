//! Three brokers as one, with KRaft; all that they keep is on each of them.
//!
//! *In*: as one broker. *Out*: brokers that can be killed one at a time. *Bound*: three JVMs.

use anyhow::{Context, Result};

use super::Kafka;
use crate::process;

const NODES: i32 = 3;

/// Three brokers; they are killed when dropped.
pub struct Cluster(Vec<Kafka>);

impl Cluster {
    /// Formats three stores and starts the brokers; new topics get this many partitions.
    ///
    /// *Errors*: as [`Kafka::start`].
    pub async fn start(partitions: i32) -> Result<Self> {
        let mut ports = Vec::new();
        for _ in 0..NODES {
            ports.push((process::free_port()?, process::free_port()?));
        }
        let voters: Vec<String> = (1..).zip(&ports).map(|(id, (_, controller))| format!("{id}@127.0.0.1:{controller}")).collect();
        let mut nodes = Vec::new();
        for (id, (port, controller)) in (1..).zip(&ports) {
            let id: i32 = id;
            let properties = format!(
                "node.id={id}\ncontroller.quorum.voters={}\n\
                 listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}\nadvertised.listeners=PLAINTEXT://127.0.0.1:{port}\n\
                 listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT\nnum.partitions={partitions}\n\
                 default.replication.factor={NODES}\nmin.insync.replicas=2\noffsets.topic.replication.factor={NODES}\n\
                 transaction.state.log.replication.factor={NODES}\ntransaction.state.log.min.isr=2\n",
                voters.join(",")
            );
            nodes.push(Kafka::prepare(*port, &properties, &[]).await?);
        }
        // None is ready before most of them are there.
        let mut starts = Vec::new();
        for node in &mut nodes {
            starts.push(node.launch()?);
        }
        for (node, before) in nodes.iter_mut().zip(starts) {
            node.started(before).await?;
        }
        Ok(Self(nodes))
    }

    /// `host:port` of all brokers.
    pub fn brokers(&self) -> String {
        self.0.iter().map(Kafka::broker).collect::<Vec<_>>().join(",")
    }

    /// The broker with this id.
    ///
    /// *Errors*: there is none.
    pub fn node(&mut self, id: i32) -> Result<&mut Kafka> {
        let index = usize::try_from(id - 1).ok();
        index.and_then(|index| self.0.get_mut(index)).with_context(|| format!("no broker {id}"))
    }
}
